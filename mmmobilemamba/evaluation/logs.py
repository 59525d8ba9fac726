"""The scalars that a training run logs, as curves."""

import json
from collections.abc import Iterable
from pathlib import Path

from ..datasets.layout import shorten
from ..errors import UserError

Curve = tuple[list[int], list[float]]


def find_logs(place: str | Path) -> list[Path]:
    """All ``scalars.json`` of a work directory, the oldest first, or the file itself.

    Of a folder of work directories it is the one with the newest log.

    Raises:
        UserError: If there is none.
    """
    place = Path(place)
    if place.is_file():
        return [place]
    logs = list(place.glob('**/vis_data/scalars.json'))
    if not logs:
        raise UserError(
            f'{place} holds no log. Give the work directory of a training run, or a scalars.json '
            '(<work dir>/<time>/vis_data/scalars.json).'
        )
    logs.sort(key=_age)
    return [log for log in logs if _run(log).parent == _run(logs[-1]).parent]


def _run(log: Path) -> Path:
    """The folder of a run, which is named by its time, in that of the training."""
    return log.parent.parent


def _age(log: Path) -> tuple[str, float]:
    # The time of the file may be that of a copy.
    return _run(log).name, log.stat().st_mtime


def read_curves(paths: Iterable[Path]) -> dict[str, Curve]:
    """Every scalar of a training against its iteration.

    Args:
        paths: Its log and those of its resumptions, in the order of time. Each replaces what the ones before
            it have from its first iteration on, as it has when the training was begun again.

    Raises:
        UserError: If a file is not a log.
    """
    points: list[tuple[int, dict[str, float]]] = []
    by_epoch, iteration = False, 0
    for path in paths:
        added, start = [], None
        for entry in _entries(path):
            if 'lr' in entry or 'loss' in entry:
                by_epoch, iteration = 'epoch' in entry, entry['iter']
                start = iteration if start is None else start
            elif not by_epoch:
                # A validation's step is its iteration, or the epoch, which may stay 0.
                iteration = max(iteration, entry.get('step', 0))
            added.append((iteration, entry))
        points = [point for point in points if start is None or point[0] < start] + added
    curves: dict[str, Curve] = {}
    for x, entry in points:
        for key, value in entry.items():
            if key not in ('step', 'iter', 'epoch') and isinstance(value, int | float):
                xs, ys = curves.setdefault(key, ([], []))
                xs.append(x)
                ys.append(value)
    return curves


def _entries(path: Path) -> list[dict]:
    entries = []
    lines = path.read_text(encoding='utf-8').splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            if 'lr' in entry or 'loss' in entry:
                int(entry['iter'])
        except (KeyError, TypeError, ValueError) as error:
            if number == len(lines):
                # A run that was interrupted leaves half a line.
                break
            raise UserError(f'Line {number} of {path} is not one of a training log ({error}).') from error
        entries.append(entry)
    return entries


def choose(curves: dict[str, Curve], keys: Iterable[str], place: str | Path) -> list[str]:
    """Check that a training has all these scalars.

    Raises:
        UserError: If not; it names those that it has.
    """
    keys = list(keys)
    if missing := [key for key in keys if key not in curves]:
        raise UserError(f'{place} has no {", ".join(missing)}. It has: {shorten(sorted(curves), 40)}.')
    return keys
