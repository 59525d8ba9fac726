"""What was measured, as Markdown, CSV and JSON, and its fit to a line."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from .. import markdown
from ..errors import UserError


@dataclass(frozen=True)
class Result:
    """One model at one size, batch size and data type; times in seconds, memory in bytes.

    Attributes:
        model: its name.
        height: of the images in pixels.
        width: of the images in pixels.
        batch: number of images.
        dtype: data type of weights and images.
        parameters: number of parameters.
        flops: multiply-adds per image without the selective scans and batch norms.
        scan_flops: those of the selective scans, 9·L·D·N + L·D for each direction.
        batch_norm_flops: one per element that a batch norm scales.
        time: median time of a forward pass.
        time_lower: its lower quartile.
        time_upper: its upper quartile.
        matmul_rate: multiply-adds per second of a big matrix product, median of the same rounds.
        train_time: median time of forward and backward pass of a training step; None if not measured.
        train_time_lower: its lower quartile.
        train_time_upper: its upper quartile.
        peak_memory: of a forward pass; None if not measured.
        published_top1: accuracy (%) on ImageNet-1K as published, or as given by the user.
    """

    model: str
    height: int
    width: int
    batch: int
    dtype: str
    parameters: int
    flops: int
    scan_flops: int
    batch_norm_flops: int
    time: float
    time_lower: float
    time_upper: float
    matmul_rate: float
    train_time: float | None = None
    train_time_lower: float | None = None
    train_time_upper: float | None = None
    peak_memory: float | None = None
    published_top1: float | None = None

    @property
    def pixels(self) -> int:
        """Of one image."""
        return self.height * self.width

    @property
    def images_per_second(self) -> float:
        """Images that a forward pass handles per second."""
        return self.batch / self.time

    @property
    def matmul_share(self) -> float:
        """Multiply-adds per second, without scans and batch norms, over :attr:`matmul_rate`."""
        return self.flops * self.batch / self.time / self.matmul_rate

    @property
    def train_ratio(self) -> float | None:
        """Time of forward and backward pass of a training step over that of the forward pass."""
        return None if self.train_time is None else self.train_time / self.time


@dataclass(frozen=True)
class Column:
    """A column of the Markdown table; it is left out where no result has a value."""

    head: str
    value: Callable[[Result], Any]
    form: str = '{}'


def _spread(kind: str) -> Callable[[Result], str | None]:
    def text(r: Result) -> str | None:
        median, lower, upper = (getattr(r, f'{kind}{end}') for end in ('', '_lower', '_upper'))
        return None if median is None else f'{1e3 * median:.1f} ({1e3 * lower:.1f}–{1e3 * upper:.1f})'

    return text


def _scaled(name: str, factor: float) -> Callable[[Result], float | None]:
    def value(r: Result) -> float | None:
        given = getattr(r, name)
        return None if given is None else given * factor

    return value


COLUMNS = (
    Column('model', lambda r: r.model),
    Column('h×w', lambda r: f'{r.height}×{r.width}'),
    Column('batch', lambda r: r.batch),
    Column('dtype', lambda r: r.dtype),
    Column('params (M)', _scaled('parameters', 1e-6), '{:.2f}'),
    Column('FLOPs (G)', _scaled('flops', 1e-9), '{:.3f}'),
    Column('+ scan (G)', lambda r: r.scan_flops * 1e-9 or None, '{:.3f}'),
    Column('latency (ms)', _spread('time')),
    Column('images/s', lambda r: r.images_per_second, '{:.1f}'),
    Column('share of matmul rate', lambda r: r.matmul_share, '{:.0%}'),
    Column('forward + backward (ms)', _spread('train_time')),
    Column('÷ forward', lambda r: r.train_ratio, '{:.2f}'),
    Column('peak memory (MiB)', _scaled('peak_memory', 2**-20), '{:.0f}'),
    Column('top-1 (%), published', lambda r: r.published_top1, '{:.1f}'),
)
DERIVED = ('images_per_second', 'matmul_share', 'train_ratio')


def to_markdown(results: Sequence[Result]) -> str:
    """A table with one row per result; FLOPs are per image, the rest per batch."""
    columns = [c for c in COLUMNS if any(c.value(r) is not None for r in results)]
    rows = [[_cell(column, result) for column in columns] for result in results]
    return markdown.table([c.head for c in columns], rows, left=4)


def _cell(column: Column, result: Result) -> str:
    value = column.value(result)
    return '–' if value is None else column.form.format(value)


def matmul_rates(results: Iterable[Result]) -> str:
    """One sentence on the machine's own rate for each data type."""
    by_dtype: dict[str, list[float]] = {}
    for r in results:
        by_dtype.setdefault(r.dtype, []).append(r.matmul_rate / 1e9)
    ranges = []
    for dtype, rates in by_dtype.items():
        low, high = f'{min(rates):.3g}', f'{max(rates):.3g}'
        ranges.append(f'{dtype} {low if low == high else f"{low}–{high}"}')
    return f'Matrix products of this machine (billions of multiply-adds per second): {", ".join(ranges)}.'


def to_csv(results: Sequence[Result]) -> str:
    """All fields unrounded, and what follows from them."""
    names = [f.name for f in fields(Result)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow([*names, *DERIVED])
    for r in results:
        values = (getattr(r, name) for name in (*names, *DERIVED))
        writer.writerow(['' if value is None else value for value in values])
    return text.getvalue()


def to_json(results: Sequence[Result], environment: dict[str, Any]) -> str:
    """All fields unrounded, beside what they were measured on."""
    content = dict(environment=environment, results=[asdict(r) for r in results])
    return json.dumps(content, indent=1, ensure_ascii=False) + '\n'


def read_json(path: Path) -> tuple[list[Result], dict[str, Any]]:
    """The results and the environment that :func:`to_json` wrote.

    Raises:
        UserError: if the file cannot be read or is none of those.
    """
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        return [Result(**result) for result in content['results']], content['environment']
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f'{path} is no JSON file of tools/benchmark.py: {error!r}.') from error


def fit_line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Offset a and slope b of y ≈ a + b·x, with the least sum of squares of *relative* deviations.

    A fit to the deviations themselves would be one to the largest values alone.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    (a, b), *_ = np.linalg.lstsq(np.stack((1 / y, x / y), axis=1), np.ones_like(y), rcond=None)
    return float(a), float(b)


def linearity(results: Sequence[Result]) -> str | None:
    """How far time and peak memory of each model rise above a line in the number of pixels.

    Returns:
        A Markdown table of the largest ratios of a value to its fit, or None where no model was measured
        at three sizes or more.
    """
    series: dict[tuple, list[Result]] = {}
    for r in results:
        series.setdefault((r.model, r.batch, r.dtype), []).append(r)
    rows = [
        [model, str(batch), dtype, *(_largest_ratio(group, name) for name in ('time', 'peak_memory'))]
        for (model, batch, dtype), group in series.items()
        if len({r.pixels for r in group}) >= 3
    ]
    return markdown.table(['model', 'batch', 'dtype', 'time', 'peak memory'], rows, left=3) if rows else None


def _largest_ratio(group: Sequence[Result], name: str) -> str:
    values = [getattr(r, name) for r in group]
    if None in values:
        return '–'
    offset, slope = fit_line([r.pixels for r in group], values)
    worst = max(group, key=lambda r: getattr(r, name) / (offset + slope * r.pixels))
    ratio = getattr(worst, name) / (offset + slope * worst.pixels)
    return f'{ratio:.2f} (at {worst.height}×{worst.width})'
