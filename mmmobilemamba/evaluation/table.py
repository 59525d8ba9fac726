"""Results of :mod:`.resolution` as a table, CSV and a plot."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from .. import markdown
from .resolution import MAIN_METRICS, MODES, SizeResult

# name in CSV, heading in Markdown, digits after the point
COSTS = (
    ('gflops', 'GFLOPs', 2),
    ('scan_gflops', 'scan GFLOPs', 2),
    ('latency_ms', 'latency (ms)', 1),
    ('peak_memory_mib', 'peak memory (MiB)', 0),
)


def main_metrics(results: Sequence[SizeResult]) -> list[str]:
    """The metrics to compare by; all, if none of the usual ones is there."""
    reported = list(dict.fromkeys(name for result in results for name in result.metrics))
    return [name for name in MAIN_METRICS if name in reported] or reported


def to_markdown(results: Sequence[SizeResult]) -> str:
    """A table with one row per size and mode; mAP and mIoU in per cent."""
    names = main_metrics(results)
    heads = ['test scale (h×w)', 'mode', 'input (h×w)', *map(_short, names), *(head for _, head, _ in COSTS)]
    rows = [
        [
            '×'.join(map(str, result.scale)),
            result.mode,
            '×'.join(map(str, result.input_size)),
            *(_number(percent(name, result.metrics.get(name)), 1) for name in names),
            *(_number(getattr(result, field), digits) for field, _, digits in COSTS),
        ]
        for result in results
    ]
    return markdown.table(heads, rows, left=3)


def to_csv(results: Sequence[SizeResult]) -> str:
    """All metrics and costs, unrounded, as the evaluator reported them."""
    names = list(dict.fromkeys(name for result in results for name in result.metrics))
    fields = [field for field, _, _ in COSTS]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(
        ['scale_height', 'scale_width', 'mode', 'input_height', 'input_width', *names, *fields, 'device']
    )
    for r in results:
        values = [r.metrics.get(name, '') for name in names]
        costs = [getattr(r, field) for field in fields]
        writer.writerow([*r.scale, r.mode, *r.input_size, *values, *costs, r.device])
    return text.getvalue()


def plot(results: Sequence[SizeResult], path: Path, title: str) -> None:
    """Draw the main metrics against test size, FLOPs and latency."""
    from matplotlib.figure import Figure

    names = main_metrics(results)
    figure = Figure(figsize=(12, 3.8), layout='constrained')
    axes = figure.subplots(1, 3, sharey=True)
    total = {id(r): r.gflops + r.scan_gflops for r in results}
    for mode in MODES:
        chosen = sorted((r for r in results if r.mode == mode), key=lambda r: r.short)
        columns = (
            [r.short for r in chosen],
            [total[id(r)] for r in chosen],
            [r.latency_ms for r in chosen],
        )
        for name in names if chosen else ():
            label = f'{_short(name)}, {mode}'
            for axis, x in zip(axes, columns, strict=True):
                axis.plot(x, [percent(name, r.metrics.get(name)) for r in chosen], marker='o', label=label)
    labels = (
        'shorter side of the test scale (pixels)',
        'GFLOPs per image, scan included',
        f'latency per image (ms), {results[0].device}',
    )
    for axis, label in zip(axes, labels, strict=True):
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_xticks(sorted({r.short for r in results}))
    axes[0].set_ylabel(' / '.join(dict.fromkeys(_short(n).split()[-1] for n in names)) + ' (%)')
    axes[0].legend()
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def percent(name: str, value: float | None) -> float | None:
    """COCO metrics are fractions, those of mmseg per cent; this gives per cent."""
    if value is None or not name.startswith('coco/'):
        return value
    return value * 100


def _short(name: str) -> str:
    return {'coco/bbox_mAP': 'box mAP', 'coco/segm_mAP': 'mask mAP'}.get(name, name)


def _number(value: float | None, digits: int) -> str:
    return '–' if value is None or value != value else f'{value:.{digits}f}'
