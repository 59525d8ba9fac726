"""Several models side by side: every size, batch size and data type, in interleaved runs."""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from mmengine.logging import print_log
from torch import nn

from ..errors import UserError
from .candidates import Candidate, Workload
from .complexity import Complexity, measure_complexity
from .memory import peak_memory
from .results import Result
from .timing import Run, Timing, interleave, matmul, matmul_size, stopwatch, training_step

Progress = Callable[[Sequence[Any], str], Iterable[Any]]
MATMUL = 'matmul'


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        device: where.
        repeats: rounds that count.
        warmup: rounds before them.
        matmul_size: side of the square matrices whose product gives the machine's rate; None chooses.
        train: time training steps too.
        memory: measure peak memory too.
    """

    device: torch.device
    repeats: int = 20
    warmup: int = 3
    matmul_size: int | None = None
    train: bool = False
    memory: bool = True


def measure(
    cases: Sequence[Sequence[Workload]], settings: Settings, progress: Progress = lambda steps, _: steps
) -> list[Result]:
    """Measure workloads; those of one case are interleaved.

    Everything is tried once before anything is timed.

    Args:
        cases: workloads of one batch size and data type each.
        settings: how to measure.
        progress: wraps what takes long, with a label.

    Raises:
        UserError: if a model cannot be built, or cannot run at a size or in a data type.
    """
    models = _build(cases, settings)
    complexities: dict[Workload, Complexity] = {}
    workloads = [workload for case in cases for workload in case]
    for workload in progress(workloads, 'trying every model once'):
        single = replace(workload, batch=1)
        if single not in complexities:
            with _failures_reported(single):
                module, images = single.prepare(copy.deepcopy(models[workload.candidate]), settings.device)
                complexities[single] = measure_complexity(module, images)
        if settings.train and not workload.candidate.folded:
            with _failures_reported(f'{workload}, training'):
                _training_step(workload, models, settings)()
    memory: dict[Workload, float | None] = {}
    if settings.memory:
        # That of compiled ones would be that of the compiler.
        for workload in progress([w for w in workloads if not w.candidate.compiled], 'peak memory'):
            with _failures_reported(workload):
                make = partial(workload.make, settings.device)
                memory[workload] = peak_memory(make, settings.device, str(workload))
        if None in memory.values():
            print_log('Peak memory on a CPU is known on Linux only', logger='current')
    results = []
    for number, case in enumerate(cases, start=1):
        label = f'[{number}/{len(cases)}] {_common(case)}'
        side = settings.matmul_size or matmul_size(case[0].dtype, settings.device)
        product = matmul(side, case[0].dtype, settings.device)
        timings = _time(case, models, settings, product, progress, label)
        rate = side**3 / timings[MATMUL].median
        for workload in case:
            counted = complexities[replace(workload, batch=1)]
            results.append(_result(workload, counted, timings, rate, memory.get(workload)))
    return results


def _build(cases: Sequence[Sequence[Workload]], settings: Settings) -> dict[Candidate, nn.Module]:
    candidates = dict.fromkeys(workload.candidate for case in cases for workload in case)
    if settings.train:
        whole = [c.name for c in candidates if c.is_whole]
        if whole:
            raise UserError(f'--train times backbones, not detectors and segmentors ({", ".join(whole)}).')
        if all(c.folded for c in candidates):
            raise UserError('--train: folded models cannot be trained. Name one without +deploy or --deploy.')
    return {candidate: candidate.build() for candidate in candidates}


def _time(
    case: Sequence[Workload],
    models: dict[Candidate, nn.Module],
    settings: Settings,
    product: Run,
    progress: Progress,
    label: str,
) -> dict[Any, Timing]:
    """Times of a matrix product, and of the inference and the training step of every workload."""
    runs: dict[Any, Run] = {MATMUL: product}
    for workload in case:
        runs[workload, 'inference'] = workload.runner(models[workload.candidate], settings.device)
        if settings.train and not workload.candidate.folded:
            runs[workload, 'training'] = _training_step(workload, models, settings)
    rounds = progress(range(settings.warmup + settings.repeats), label)
    with _failures_reported(_common(case)):
        return interleave(runs, stopwatch(settings.device), rounds, settings.warmup)


def _training_step(workload: Workload, models: dict[Candidate, nn.Module], settings: Settings) -> Run:
    full = replace(workload, dtype=torch.float32)
    module, images = full.prepare(copy.deepcopy(models[workload.candidate]), settings.device)
    module.train()
    return training_step(module, images, workload.dtype)


def _common(case: Sequence[Workload]) -> str:
    sizes = dict.fromkeys(f'{w.height}x{w.width}' for w in case)
    dtype = str(case[0].dtype).removeprefix('torch.')
    return f'{", ".join(sizes)}, batch {case[0].batch}, {dtype}'


@contextmanager
def _failures_reported(what: Workload | str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (AssertionError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f'{what}: cannot run ({reason[0]}). Try another size, batch size or data type.'
        ) from error


def _result(
    workload: Workload, counted: Complexity, timings: dict[Any, Timing], rate: float, memory: float | None
) -> Result:
    time, train = (timings.get((workload, kind)) for kind in ('inference', 'training'))
    candidate = workload.candidate
    return Result(
        model=candidate.name,
        height=workload.height,
        width=workload.width,
        batch=workload.batch,
        dtype=str(workload.dtype).removeprefix('torch.'),
        parameters=counted.parameters,
        flops=counted.flops,
        scan_flops=counted.scan_flops,
        batch_norm_flops=counted.batch_norm_flops,
        time=time.median,
        time_lower=time.lower,
        time_upper=time.upper,
        matmul_rate=rate,
        train_time=train and train.median,
        train_time_lower=train and train.lower,
        train_time_upper=train and train.upper,
        peak_memory=memory,
        published_top1=candidate.published_top1(workload.height, workload.width),
    )
