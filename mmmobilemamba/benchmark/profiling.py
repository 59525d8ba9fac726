"""Where the time of a forward pass goes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from .. import markdown
from ..layers import ss2d

SCAN, BETWEEN = 'selective scan', 'between operations (Python)'
# The first group with a part of the operation's name takes it.
GROUPS = {
    'convolutions': ('conv', 'stem'),  # of a folded network in one operator
    'matrix products': ('mm', 'linear', 'matmul', 'einsum', 'dot_product'),
    'normalisation': ('norm',),
    'activations': ('relu', 'silu', 'gelu', 'sigmoid', 'swish', 'hardtanh', 'softmax', 'tanh', 'clamp'),
    'copies': ('copy', 'cat', 'stack', 'clone', 'contiguous', 'pad', 'fill', 'zero', 'reorder', 'to_dense'),
    'pooling and resizing': ('pool', 'upsample', 'mean', 'interpolate', 'roi_align'),
    'sums and products': ('add', 'mul', 'sub', 'div', 'sum', 'exp'),
    # Parts of csrc/folded.cpp, which all of the above go into.
    'folded blocks': ('dw_ffn', 'scan_inputs', 'wavelets', 'mix', 'merge', 'block', 'downsample'),
}


@dataclass(frozen=True)
class Profile:
    """Times in seconds of one forward pass, averaged over several under the profiler.

    Attributes:
        groups: time by kind of operation, :data:`SCAN` among them, the longest first.
        operations: time by operation, and how often it is called; those of the scan are not taken apart.
    """

    groups: dict[str, float]
    operations: dict[str, tuple[float, float]]

    @property
    def total(self) -> float:
        """All of the forward pass."""
        return sum(self.groups.values())

    @property
    def scan_share(self) -> float:
        """Share of the selective scans."""
        return self.groups.get(SCAN, 0.0) / self.total


@torch.no_grad()
def profile_forward(module: nn.Module, images: Tensor, repeats: int = 10, warmup: int = 3) -> Profile:
    """Profile forward passes.

    Args:
        module: in evaluation mode.
        images: its input; its device decides whether CPU or GPU time is told.
        repeats: passes to average over.
        warmup: passes before them.
    """
    on_gpu = images.device.type == 'cuda'
    for _ in range(warmup):
        module(images)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with _scans_recorded(), profile(activities=activities) as profiler:
        for _ in range(repeats):
            with record_function(BETWEEN):
                module(images)
        if on_gpu:
            torch.cuda.synchronize()
    # PyTorch before 2.3 has the second name.
    names = ('self_device_time_total', 'self_cuda_time_total') if on_gpu else ('self_cpu_time_total',)
    attribute = next(name for name in names if hasattr(FunctionEvent, name))
    # Events of the CPU hold the times of the kernels that they start, which those of the GPU would repeat.
    events = [event for event in profiler.events() if event.device_type == DeviceType.CPU]
    return summarise(events, lambda event: getattr(event, attribute) * 1e-6, repeats)


def summarise(
    events: list[FunctionEvent], seconds: Callable[[FunctionEvent], float], repeats: int
) -> Profile:
    """Sum the times that events took themselves, without those below them."""
    groups: dict[str, float] = {}
    operations: dict[str, tuple[float, float]] = {}
    for event in events:
        chain = [event.name, *_ancestors(event)]
        if BETWEEN not in chain:
            continue
        name = SCAN if SCAN in chain else event.name
        group = group_of(name)
        time = seconds(event) / repeats
        groups[group] = groups.get(group, 0.0) + time
        before, calls = operations.get(name, (0.0, 0.0))
        # The operations inside a scan are no calls of it.
        operations[name] = (before + time, calls + (event.name == name) / repeats)
    return Profile(_longest_first(groups), _longest_first(operations))


def group_of(name: str) -> str:
    """The kind of an operation."""
    if name in (SCAN, BETWEEN):
        return name
    short = name.rsplit('::', 1)[-1].lower()
    return next((group for group, parts in GROUPS.items() if any(part in short for part in parts)), 'other')


def _longest_first(times: Mapping[str, Any]) -> dict[str, Any]:
    return dict(sorted(times.items(), key=lambda item: item[1], reverse=True))


def _ancestors(event: FunctionEvent) -> Iterator[str]:
    while (event := event.cpu_parent) is not None:
        yield event.name


@contextmanager
def _scans_recorded() -> Iterator[None]:
    """Let the profiler tell the scan from the rest, whichever backend computes it."""
    scan = ss2d.bidirectional_selective_scan

    def recorded(*args: Any, **options: Any) -> Tensor:
        with record_function(SCAN):
            return scan(*args, **options)

    ss2d.bidirectional_selective_scan = recorded
    try:
        yield
    finally:
        ss2d.bidirectional_selective_scan = scan


def to_markdown(name: str, found: Profile, rows: int = 12) -> str:
    """Two tables: time by kind, and the operations that take most."""
    kinds = [[kind, f'{1e3 * t:.2f}', f'{t / found.total:.1%}'] for kind, t in found.groups.items()]
    operations = [
        [operation, f'{calls:.0f}', f'{1e3 * t:.2f}', f'{t / found.total:.1%}']
        for operation, (t, calls) in list(found.operations.items())[:rows]
    ]
    return '\n\n'.join(
        (
            f'{name}: {1e3 * found.total:.1f} ms under the profiler, selective scan {found.scan_share:.1%}',
            markdown.table(['kind', 'ms', 'share'], kinds),
            markdown.table(['operation', 'calls', 'ms', 'share'], operations),
        )
    )
