"""Mixed precision on a CPU."""

from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """What mmengine's ``AmpOptimWrapper``, which asks for an accelerator, is on a GPU.

    There is no loss scaling: bfloat16 has the exponents of float32.

    Args:
        dtype: Data type of the autocast: 'bfloat16', which is the only one that mmengine's autocast
            takes on a CPU.
        **kwargs: Arguments of ``OptimWrapper``.

    Raises:
        ValueError: If ``dtype`` is another one.
    """

    def __init__(self, dtype: str | torch.dtype = 'bfloat16', **kwargs: Any) -> None:
        if dtype not in ('bfloat16', torch.bfloat16):
            raise ValueError(f'dtype is {dtype!r}; mixed precision on a CPU is of bfloat16')
        super().__init__(**kwargs)

    @contextmanager
    def optim_context(self, model: nn.Module):
        """Run the forward pass of a training step under autocast."""
        with super().optim_context(model), torch.autocast('cpu', dtype=torch.bfloat16):
            yield
