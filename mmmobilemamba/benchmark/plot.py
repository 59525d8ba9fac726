"""Pictures of results: time and memory against size, or accuracy against time."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..errors import UserError
from .results import Result

KINDS = ('size', 'accuracy')
NO_ACCURACY = (
    '--plot accuracy needs accuracies: take --sizes published for variants of MobileMamba, and give those '
    'of other models with --top1.'
)


def plot(kind: str, results: Sequence[Result], path: Path, title: str) -> None:
    """Draw results into a file.

    Args:
        kind: 'size' or 'accuracy'.
        results: what to draw.
        path: file; its suffix gives the format.
        title: above the picture.

    Raises:
        UserError: if no result has the accuracy that ``kind`` asks for.
    """
    if kind == 'accuracy' and all(r.published_top1 is None for r in results):
        raise UserError(NO_ACCURACY)
    figure = Figure(figsize=(12, 4.5) if kind == 'size' else (7, 5), layout='constrained')
    if kind == 'size':
        _plot_sizes(figure, results)
    else:
        _plot_accuracy(figure.subplots(), results)
    figure.suptitle(title, fontsize='medium')
    figure.savefig(path, dpi=150)


def _series(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results by model, and by batch size and data type where these differ."""
    several = len({(r.batch, r.dtype) for r in results}) > 1
    series: dict[str, list[Result]] = {}
    for r in sorted(results, key=lambda r: r.pixels):
        label = f'{r.model}, {r.dtype}, batch {r.batch}' if several else r.model
        series.setdefault(label, []).append(r)
    return series


def _plot_sizes(figure: Figure, results: Sequence[Result]) -> None:
    with_memory = any(r.peak_memory is not None for r in results)
    axes = figure.subplots(1, 1 + with_memory, squeeze=False)[0]
    for label, group in _series(results).items():
        x = [r.pixels for r in group]
        (line,) = axes[0].plot(x, [1e3 * r.time for r in group], marker='o', markersize=4, label=label)
        axes[0].fill_between(
            x,
            [1e3 * r.time_lower for r in group],
            [1e3 * r.time_upper for r in group],
            alpha=0.2,
            color=line.get_color(),
        )
        if with_memory:
            measured = [r for r in group if r.peak_memory is not None]
            axes[1].plot(
                [r.pixels for r in measured],
                [r.peak_memory / 2**20 for r in measured],
                marker='o',
                markersize=4,
                label=label,
            )
    labels = ['time of a forward pass (ms), with quartiles', 'peak memory (MiB)']
    for axis, label in zip(axes, labels, strict=False):
        _label_sizes(axis, results)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize='small')


def _label_sizes(axis: Axes, results: Sequence[Result]) -> None:
    """Pixels on a linear scale, so that what is linear in them is straight; sizes where they have room."""
    sizes = {r.pixels: f'{r.height}×{r.width}' for r in results}
    widest = max(sizes)
    chosen: list[int] = []
    for pixels in sorted(sizes, reverse=True):
        if not chosen or chosen[-1] - pixels > 0.07 * widest:
            chosen.append(pixels)
    axis.set_xlim(0, 1.03 * widest)
    axis.set_xticks(chosen, [sizes[pixels] for pixels in chosen], rotation=45, ha='right', fontsize='small')
    axis.set_xlabel('size of the images (scale linear in pixels)')


def _plot_accuracy(axis: Axes, results: Sequence[Result]) -> None:
    known = [r for r in results if r.published_top1 is not None]
    for label, group in _series(known).items():
        latencies = [1e3 * r.time for r in group]
        axis.plot(latencies, [r.published_top1 for r in group], marker='o', linestyle=':', label=label)
        for r, latency in zip(group, latencies, strict=True):
            axis.annotate(
                f'{r.height}×{r.width}',
                (latency, r.published_top1),
                xytext=(5, -9),
                textcoords='offset points',
                fontsize='x-small',
            )
    axis.set_xlabel('time of a forward pass (ms), measured')
    axis.set_ylabel('top-1 on ImageNet-1K (%), published')
    axis.margins(y=0.12)
    axis.set_xlim(0, 1.15e3 * max(r.time for r in known))  # room for the last label
    axis.grid(alpha=0.3)
    axis.legend(fontsize='small')
