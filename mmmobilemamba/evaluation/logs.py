"""The scalars that a training run logs, as curves."""

import json
from collections.abc import Iterable
from pathlib import Path

from ..datasets.layout import shorten
from ..errors import UserError

Curve = tuple[list[int], list[float]]


def find_log(place: str | Path) -> Path:
    """The newest ``scalars.json`` in a work directory, or the file itself.

    Raises:
        UserError: If there is none.
    """
    place = Path(place)
    if place.is_file():
        return place
    logs = sorted(place.glob('**/vis_data/scalars.json'), key=lambda p: p.stat().st_mtime)
    if not logs:
        raise UserError(
            f'{place} holds no log. Give the work directory of a training run, or a scalars.json '
            '(<work dir>/<time>/vis_data/scalars.json).'
        )
    return logs[-1]


def read_curves(path: Path) -> dict[str, Curve]:
    """Every scalar of a log against the training iteration.

    Validation results are at the iteration of the last training line before them, whether the run
    counts epochs or iterations.

    Raises:
        UserError: If the file is not a log.
    """
    curves: dict[str, Curve] = {}
    iteration = 0
    lines = path.read_text(encoding='utf-8').splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            if 'lr' in entry or 'loss' in entry:
                iteration = entry['iter']
        except (KeyError, TypeError, ValueError) as error:
            if number == len(lines):
                # A run that was interrupted leaves half a line.
                break
            raise UserError(f'Line {number} of {path} is not one of a training log ({error}).') from error
        for key, value in entry.items():
            if key not in ('step', 'iter', 'epoch') and isinstance(value, int | float):
                x, y = curves.setdefault(key, ([], []))
                x.append(iteration)
                y.append(value)
    return curves


def choose(curves: dict[str, Curve], keys: Iterable[str], path: Path) -> list[str]:
    """Check that a log has all these scalars.

    Raises:
        UserError: If not; it names those that it has.
    """
    keys = list(keys)
    if missing := [key for key in keys if key not in curves]:
        raise UserError(f'{path} has no {", ".join(missing)}. It has: {shorten(sorted(curves), 40)}.')
    return keys
