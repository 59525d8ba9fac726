"""Memory of one prediction, and where it was measured."""

from pathlib import Path

import torch
from torch import Tensor, nn

PROCESS = Path('/proc/self')


def device_name(device: torch.device) -> str:
    """The GPU's own name, or 'CPU' with the number of threads."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    if device.type == 'cpu':
        return f'CPU, {torch.get_num_threads()} threads'
    return str(device)


@torch.no_grad()
def measure_peak_memory(module: nn.Module, inputs: Tensor) -> float:
    """Peak memory of a forward pass, weights included, in bytes.

    On a GPU what PyTorch allocates; on a CPU the resident memory of the process, libraries included,
    which only Linux tells (elsewhere NaN).
    """
    if inputs.device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(inputs.device)
        module(inputs)
        return float(torch.cuda.max_memory_allocated(inputs.device))
    try:
        # Writing 5 resets the peak; see proc(5).
        (PROCESS / 'clear_refs').write_text('5')
        module(inputs)
        status = (PROCESS / 'status').read_text()
    except OSError:
        return float('nan')
    line = next(line for line in status.splitlines() if line.startswith('VmHWM:'))
    return float(line.split()[1]) * 1024
