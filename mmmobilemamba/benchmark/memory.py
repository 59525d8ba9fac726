"""Peak memory of a forward pass, whatever the process has used before."""

import logging
import multiprocessing
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from ..malloc import give_freed_memory_back

PROCESS = Path('/proc/self')
# A module and its argument, on the device to measure on; to be pickled.
Make = Callable[[], tuple[nn.Module, Any]]


def peak_memory(make: Make, device: torch.device, name: str) -> float | None:
    """Bytes that a forward pass takes at its peak: weights, images and everything between.

    On a GPU: what PyTorch allocates. On a CPU: by how much the resident memory of a fresh process, without
    files that are mapped into it such as libraries, grows from before the model is built to the peak of its
    second forward pass. A process may hold more, of what was freed. Only Linux tells that; elsewhere None.

    Args:
        make: builds the model, in evaluation mode, and its argument.
        device: where.
        name: of the workload, for the error.

    Raises:
        UserError: if the memory does not suffice.
    """
    if device.type == 'cuda':
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        module, inputs = make()
        torch.cuda.reset_peak_memory_stats(device)
        _forward(module, inputs)
        return float(torch.cuda.max_memory_allocated(device) - before)
    if not (PROCESS / 'clear_refs').exists():
        return None
    # The processes are forked from one that has the libraries but has never computed.
    context = multiprocessing.get_context('forkserver')
    packages = [package for package in ('mmdet.models', 'mmseg.models') if package in sys.modules]
    context.set_forkserver_preload([__name__, 'mmmobilemamba', 'mmcv.cnn', *packages])
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            return pool.submit(_peak_of_process, make, torch.get_num_threads()).result()
    except BrokenProcessPool as error:
        raise UserError(
            f'{name}: the process that measures its memory was killed, probably because the machine '
            'has too little. Take smaller sizes or batches, or, in tools/benchmark.py, --no-memory.'
        ) from error


def _peak_of_process(make: Make, threads: int) -> float | None:
    torch.set_num_threads(threads)
    # What building a model says, the calling process has said.
    logging.disable(logging.INFO)
    give_freed_memory_back()
    # A first model brings in the packages that building one imports. It is kept, so that the second finds
    # none of its memory to use again.
    kept = make()
    before = _resident('RssAnon')
    module, inputs = make()
    _forward(module, inputs)
    try:
        # Writing 5 resets the peak; see proc(5).
        (PROCESS / 'clear_refs').write_text('5')
    except OSError:
        return None
    _forward(module, inputs)
    peak = _resident('VmHWM')
    del kept
    return peak - _resident('RssFile') - _resident('RssShmem') - before


@torch.no_grad()
def _forward(module: nn.Module, inputs: Any) -> None:
    module(inputs)


def _resident(kind: str) -> float:
    """Resident memory of that kind in bytes; see proc(5)."""
    lines = (PROCESS / 'status').read_text().splitlines()
    return float(next(line for line in lines if line.startswith(f'{kind}:')).split()[1]) * 1024
