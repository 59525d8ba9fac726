"""Batch normalisation for CPUs, compiled, together with the ReLU or the sum behind it."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import native


def batch_norm(norm: nn.Module, x: Tensor, relu: bool = False, add: Tensor | None = None) -> Tensor:
    """``norm(x)``, then ``relu`` or ``+ add``.

    On a CPU, the compiled operator for an ordinary ``BatchNorm2d`` reads and writes the maps less often than
    PyTorch's own with what follows it, forward and backward, and is faster where there are few channels.

    Args:
        norm: any normalisation, in the mode that it is to run in.
        x: (B, C, H, W), any strides.
        relu: whether to leave out what is negative.
        add: (B, C, H, W), to be added after that.

    Returns:
        (B, C, H, W).
    """
    if _runs_natively(norm, x) and (add is None or add.dtype == x.dtype):
        return _compute(norm, x, relu, add)
    y = norm(x)
    if relu:
        y = F.relu(y, inplace=True)
    return y if add is None else y + add


def _runs_natively(norm: nn.Module, x: Tensor) -> bool:
    return (
        type(norm) is nn.BatchNorm2d
        and native.usable(x)
        and x.dtype in (torch.float32, torch.bfloat16)
        and x.dim() == 4
        and x.shape[1] >= native.MIN_CHANNELS
        and x.numel() > 0
        # Faster than norm.weight, and there is much to normalise.
        and (weight := norm._parameters['weight']) is not None
        and weight.dtype == torch.float32
        and not (norm._forward_hooks or norm._forward_pre_hooks)
        and _operator_registered()
    )


def _compute(norm: nn.BatchNorm2d, x: Tensor, relu: bool, add: Tensor | None) -> Tensor:
    """As the forward pass of ``BatchNorm2d`` takes its arguments from its state."""
    parameters, buffers, momentum = norm._parameters, norm._buffers, norm.momentum
    mean, variance, count = (buffers[k] for k in ('running_mean', 'running_var', 'num_batches_tracked'))
    training = norm.training or (mean is None and variance is None)
    if training:
        F._verify_batch_size(x.shape)
    if norm.training and count is not None:
        count.add_(1)
        if momentum is None:
            momentum = 1.0 / float(count)
    if norm.training and not norm.track_running_stats:
        mean = variance = None
    weight, bias = parameters['weight'], parameters['bias']
    return torch.ops.mmmobilemamba.batch_norm(
        x, weight, bias, mean, variance, training, momentum or 0.0, norm.eps, relu, add
    )


@cache
def _operator_registered() -> bool:
    torch.library.register_fake('mmmobilemamba::batch_norm', _fake)
    return True


def _fake(x: Tensor, *_: Tensor | float | None) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)
