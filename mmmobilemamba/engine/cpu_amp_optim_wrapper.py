"""Mixed precision on a CPU."""

from collections.abc import Iterator
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
        loss_scale: As ``AmpOptimWrapper`` takes it, for float16: 'dynamic', a number, or the arguments
            of ``GradScaler``, for example ``dict(init_scale=512.)``.
        **kwargs: Arguments of ``OptimWrapper``.

    Raises:
        ValueError: If ``dtype`` or ``loss_scale`` is another one, or PyTorch cannot scale losses on a CPU.
    """

    def __init__(
        self,
        dtype: str | torch.dtype = 'bfloat16',
        loss_scale: str | float | dict[str, Any] = 'dynamic',
        **kwargs: Any,
    ) -> None:
        name = str(dtype).removeprefix('torch.')
        if name not in DTYPES:
            raise ValueError(f'dtype is {dtype!r}; mixed precision on a CPU is of {" or ".join(DTYPES)}')
        if name == 'float16' and not hasattr(torch.amp, 'GradScaler'):
            raise ValueError(
                f'float16 on a CPU needs torch 2.3 or later, this is {torch.__version__}; use bfloat16'
            )
        number = isinstance(loss_scale, int | float)
        if not number and not isinstance(loss_scale, dict) and loss_scale != 'dynamic':
            raise ValueError(f"loss_scale is {loss_scale!r}; it is 'dynamic', a number or a dict")
        # Past AmpOptimWrapper's own constructor, which refuses CPUs.
        OptimWrapper.__init__(self, **kwargs)
        self.cast_dtype = getattr(torch, name)
        self._scale_update_param = float(loss_scale) if number else None
        options = loss_scale if isinstance(loss_scale, dict) else {'init_scale': loss_scale} if number else {}
        self.loss_scaler = _grad_scaler(enabled=name == 'float16', **options)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the forward pass of a training step under autocast."""
        with OptimWrapper.optim_context(self, model), torch.autocast('cpu', dtype=self.cast_dtype):
            yield

    def backward(self, loss: torch.Tensor, **kwargs: Any) -> None:
        """Compute the gradients of the scaled loss."""
        # oneDNN's backward convolutions of float16 are a reference, slower than PyTorch's own.
        slow = self.cast_dtype == torch.float16
        with torch.backends.mkldnn.flags(enabled=False) if slow else nullcontext():
            super().backward(loss, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """The state of the optimizer, and of the scaler where it scales: no other can be loaded elsewhere."""
        state = super().state_dict()
        if not state['loss_scaler']:
            del state['loss_scaler']
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a state; a scaler begins anew if there is none for it."""
        if not state_dict.get('loss_scaler', True):
            state_dict = {key: value for key, value in state_dict.items() if key != 'loss_scaler'}
        super().load_state_dict(state_dict)


def _grad_scaler(enabled: bool, **options: Any) -> 'torch.amp.GradScaler':  # which torch 2.1 and 2.2 lack
    """A scaler of losses for the CPU; bfloat16 has the exponents of float32 and needs none."""
    if hasattr(torch.amp, 'GradScaler'):
        return torch.amp.GradScaler('cpu', enabled=enabled, **options)
    return torch.cuda.amp.GradScaler(enabled=False)
