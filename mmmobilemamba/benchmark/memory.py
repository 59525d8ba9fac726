"""Peak memory of a prediction."""

import math
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import torch

from ..errors import UserError
from ..evaluation.cost import PROCESS, measure_peak_memory
from .candidates import Workload


def peak_memory(workload: Workload, device: torch.device) -> float | None:
    """Bytes that a forward pass takes at its peak: weights, images and everything between.

    On a GPU: what PyTorch allocates. On a CPU: by how much the resident memory of a fresh process, without
    files that are mapped into it such as libraries, grows from before the model is built to the peak of its
    second forward pass. Only Linux tells that; elsewhere None.

    Raises:
        UserError: if the memory does not suffice.
    """
    if device.type == 'cuda':
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        model, images = workload.prepare(workload.candidate.build(), device)
        return measure_peak_memory(model, images) - before
    if not (PROCESS / 'clear_refs').exists():
        return None
    # The processes are forked from one that has the libraries but has never computed.
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([__name__, 'mmmobilemamba', 'mmcv.cnn'])
    try:
        with ProcessPoolExecutor(1, mp_context=context) as pool:
            peak = pool.submit(_peak_of_process, workload, torch.get_num_threads()).result()
    except BrokenProcessPool as error:
        raise UserError(
            f'{workload}: the process that measures its memory was killed, probably because the machine '
            'has too little. Take smaller sizes or batches, or --no-memory.'
        ) from error
    return None if math.isnan(peak) else peak


def _peak_of_process(workload: Workload, threads: int) -> float:
    torch.set_num_threads(threads)
    # A first model brings in the packages that building one imports. It is kept, so that the second finds
    # none of its memory to use again.
    kept = workload.candidate.build()
    before = _resident('RssAnon')
    model, images = workload.prepare(workload.candidate.build(), 'cpu')
    measure_peak_memory(model, images)
    peak = measure_peak_memory(model, images)
    del kept
    return peak - _resident('RssFile') - _resident('RssShmem') - before


def _resident(kind: str) -> float:
    """Resident memory of that kind in bytes; see proc(5)."""
    lines = (PROCESS / 'status').read_text().splitlines()
    return float(next(line for line in lines if line.startswith(f'{kind}:')).split()[1]) * 1024
