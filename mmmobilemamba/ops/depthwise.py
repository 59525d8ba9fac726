"""Depth-wise convolution with a fast gradient of large kernels on CPUs."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from . import native


def depthwise_conv2d(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve every channel with its own kernel, as many pixels out as in.

    For kernels of 5 and 7 pixels the gradient of ``F.conv2d`` takes ten times as long as its forward pass
    on a CPU, most of it for the weights; here a compiled function takes their place where it was built.

    Args:
        x: (B, C, H, W), any strides.
        weight: (C, 1, k, k), k odd.

    Returns:
        (B, C, H, W).
    """
    kernel_size = weight.shape[-1]
    if (
        kernel_size in (5, 7)
        and torch.is_grad_enabled()
        and weight.requires_grad
        and native.usable(x)
        and _operator_registered()
    ):
        if torch.is_autocast_enabled('cpu'):
            dtype = torch.get_autocast_dtype('cpu')
            x, weight = x.to(dtype), weight.to(dtype)
        if x.dtype == weight.dtype != torch.float64:
            return _DepthwiseConv.apply(x, weight)
    return F.conv2d(x, weight, padding=kernel_size // 2, groups=x.shape[1])


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=x.shape[1])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad
        channels, padding = x.shape[1], weight.shape[-1] // 2
        # Of odd kernels without stride the transposed convolution is one with the kernels turned round.
        dx = F.conv2d(grad, weight.flip(2, 3), padding=padding, groups=channels) if needs_x else None
        if not needs_weight:
            return dx, None
        if torch.is_grad_enabled():
            # Differentiable again, for backward(create_graph=True).
            return dx, torch.nn.grad.conv2d_weight(x, weight.shape, grad, padding=padding, groups=channels)
        dweight = torch.ops.mmmobilemamba.depthwise_weight_gradient(grad.float(), x.float(), weight.shape[-1])
        return dx, dweight.to(weight.dtype)


@cache
def _operator_registered() -> bool:
    torch.library.register_fake('mmmobilemamba::depthwise_weight_gradient', _fake)
    return True


def _fake(grad: Tensor, x: Tensor, kernel_size: int) -> Tensor:
    return x.new_empty(x.shape[1], 1, kernel_size, kernel_size)
