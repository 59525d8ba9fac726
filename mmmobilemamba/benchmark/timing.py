"""Times of interleaved runs, and what the machine could do at best."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Key = TypeVar('Key')
Run = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Median and quartiles of repeated runs, in seconds."""

    median: float
    lower: float
    upper: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> 'Timing':
        """Of at least one run."""
        if len(seconds) == 1:
            return cls(*3 * seconds)
        lower, median, upper = statistics.quantiles(seconds, n=4, method='inclusive')
        return cls(median, lower, upper)


def stopwatch(device: torch.device) -> Callable[[Run], float]:
    """What takes the time of a run on that device, in seconds; on a GPU with its own events."""
    return _gpu_seconds if device.type == 'cuda' else _seconds


def _seconds(run: Run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _gpu_seconds(run: Run) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3


def interleave(
    runs: Mapping[Key, Run], measure: Callable[[Run], float], rounds: Iterable[int], warmup: int
) -> dict[Key, Timing]:
    """Time every run once a round, so that a busy moment of the machine slows all of them.

    Each runs once more before it is timed, as the run of another leaves the caches full of its own.

    Args:
        runs: what to time, by name.
        measure: gives the seconds that a run takes, e.g. :func:`stopwatch`.
        rounds: one item per round, the first ``warmup`` of which are not counted.
        warmup: how many those are.
    """
    seconds: dict[Key, list[float]] = {key: [] for key in runs}
    for i in rounds:
        for key, run in runs.items():
            run()
            elapsed = measure(run)
            if i >= warmup:
                seconds[key].append(elapsed)
    return {key: Timing.of(values) for key, values in seconds.items()}


def matmul(size: int, dtype: torch.dtype, device: torch.device) -> Run:
    """The product of two square matrices, size³ multiply-adds: the machine's own rate."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def matmul_size(dtype: torch.dtype, device: torch.device, limit: float = 0.25) -> int:
    """Side of matrices big enough to show the machine's rate, whose product takes ``limit`` seconds at most.

    Where a data type is emulated, as bfloat16 on many CPUs, one of the usual size would take minutes.
    """
    size, largest = 256, 8192 if device.type == 'cuda' else 2048
    seconds = stopwatch(device)
    while size < largest:
        run = matmul(size, dtype, device)
        run()
        if 8 * seconds(run) > limit:
            break
        size *= 2
    return size


def inference(module: nn.Module, images: Tensor) -> Run:
    """A forward pass without gradients."""

    @torch.no_grad()
    def run() -> None:
        module(images)

    return run


def training_step(module: nn.Module, images: Tensor, dtype: torch.dtype) -> Run:
    """Forward and backward pass of the mean of all outputs; autocast unless ``dtype`` is float32.

    Args:
        module: in training mode, with float32 weights.
        images: float32.
        dtype: in which to compute.
    """

    def run() -> None:
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            outputs = list(_tensors(module(images)))
        sum(output.float().mean() for output in outputs).backward()
        module.zero_grad(set_to_none=True)

    return run


def _tensors(outputs: Any) -> Iterable[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping | Sequence):
        for item in outputs.values() if isinstance(outputs, Mapping) else outputs:
            yield from _tensors(item)
