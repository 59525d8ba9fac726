"""Mixed precision on a CPU."""

from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

DTYPES = ('bfloat16', 'float16')


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(AmpOptimWrapper):
    """What mmengine's ``AmpOptimWrapper``, which asks for an accelerator, is on a GPU.

    PyTorch 2.13 computes 3x3 convolutions of stride 2 wrongly in bfloat16 where the map is one or two
    pixels wide, if the CPU has AMX; MobileMamba's last stage has stride 64, so let pictures be wider than
    128 pixels there.

    Args:
        dtype: Data type of the autocast: 'bfloat16', or 'float16', which scales the loss as on a GPU
            and serves to try out what a GPU will compute: PyTorch's convolutions of it may take some
            ten times as long as those of float32.
        **kwargs: Arguments of ``OptimWrapper``.

    Raises:
        ValueError: If ``dtype`` is another one, or PyTorch cannot scale losses on a CPU.
    """

    def __init__(self, dtype: str | torch.dtype = 'bfloat16', **kwargs: Any) -> None:
        name = str(dtype).removeprefix('torch.')
        if name not in DTYPES:
            raise ValueError(f'dtype is {dtype!r}; mixed precision on a CPU is of {" or ".join(DTYPES)}')
        if name == 'float16' and not hasattr(torch.amp, 'GradScaler'):
            raise ValueError(
                f'float16 on a CPU needs torch 2.3 or later, this is {torch.__version__}; use bfloat16'
            )
        # Past AmpOptimWrapper's own constructor, which refuses CPUs.
        OptimWrapper.__init__(self, **kwargs)
        self.cast_dtype = getattr(torch, name)
        self._scale_update_param = None
        self.loss_scaler = _grad_scaler(enabled=name == 'float16')

    @contextmanager
    def optim_context(self, model: nn.Module):
        """Run the forward pass of a training step under autocast."""
        with OptimWrapper.optim_context(self, model), torch.autocast('cpu', dtype=self.cast_dtype):
            yield

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        """Compute the gradients of the scaled loss."""
        # oneDNN's backward convolutions of float16 are a reference, slower than PyTorch's own.
        slow = self.cast_dtype == torch.float16
        with torch.backends.mkldnn.flags(enabled=False) if slow else nullcontext():
            super().backward(loss, **kwargs)


def _grad_scaler(enabled: bool):
    """A scaler of losses for the CPU; bfloat16 has the exponents of float32 and needs none."""
    if hasattr(torch.amp, 'GradScaler'):
        return torch.amp.GradScaler('cpu', enabled=enabled)
    return torch.cuda.amp.GradScaler(enabled=False)
