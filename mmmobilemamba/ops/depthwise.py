"""Depth-wise convolution for CPUs: compiled, in channels-last memory, with a fast gradient."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..compat import autocasts_on_cpu
from . import native


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve every channel with its own kernel, as many pixels out as in.

    On a CPU the compiled operator saves most of what PyTorch's own spends on small maps outside of its
    arithmetic, and most of the gradient of 5x5 and 7x7 kernels.

    Args:
        x: (B, C, H, W), any strides.
        weight: (C, 1, k, k), k odd.
        bias: (C).

    Returns:
        (B, C, H, W).
    """
    if native.usable(x) and autocasts_on_cpu():
        # As PyTorch's own convolution, which stays in float64.
        dtype = torch.get_autocast_dtype('cpu')
        x, weight, bias = (
            t if t is None or t.dtype == torch.float64 else t.to(dtype) for t in (x, weight, bias)
        )
    if _runs_natively(x, weight):
        return torch.ops.mmmobilemamba.depthwise_conv2d(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=x.shape[1])


def _runs_natively(x: Tensor, weight: Tensor) -> bool:
    return (
        native.usable(x)
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.bfloat16)
        and weight.shape[-1] in native.KERNEL_SIZES
        and x.shape[1] >= native.MIN_CHANNELS
        and _operators_registered()
    )


@cache
def _operators_registered() -> bool:
    torch.library.register_fake('mmmobilemamba::depthwise_conv2d', _fake)
    torch.library.register_fake('mmmobilemamba::depthwise_weight_gradient', _fake_gradient)
    return True


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _fake_gradient(grad: Tensor, x: Tensor, kernel_size: int) -> Tensor:
    return x.new_empty(x.shape[1], 1, kernel_size, kernel_size, dtype=torch.float32)
