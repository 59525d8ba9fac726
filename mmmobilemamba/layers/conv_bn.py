"""Convolution + BatchNorm, and the two residual units built from it."""

from typing import Any

import torch.nn as nn
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..ops import batch_norm, depthwise_conv2d
from .fused_conv import FusedConv2d

NormCfg = dict[str, Any]
DEFAULT_NORM: NormCfg = dict(type='BN', eps=1e-5)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """1x1 convolution; on a CPU as the product of matrices that it is in channels-last memory.

    The matrix product of the CPU's BLAS is faster, forward and backward, than ``F.conv2d``, which
    rearranges the weights at every call.
    """
    if x.device.type != 'cpu':
        return F.conv2d(x, weight, bias)
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution that computes by :func:`pointwise`."""

    def forward(self, x: Tensor) -> Tensor:
        return pointwise(x, self.weight, self.bias)


class DepthwiseConv2d(nn.Conv2d):
    """One kernel of an odd size per channel, that computes by :func:`depthwise_conv2d`."""

    def __init__(self, channels: int, kernel_size: int, bias: bool = False) -> None:
        super().__init__(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=bias
        )

    def forward(self, x: Tensor) -> Tensor:
        return depthwise_conv2d(x, self.weight, self.bias)


class ConvBN(nn.Module):
    """Convolution without bias, "same" padding, then batch normalisation, and a ReLU on demand.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd side of the square kernel.
        stride: stride of the convolution.
        groups: groups of the convolution; equal to ``in_channels`` it is depth-wise.
        norm_cfg: OpenMMLab config of the normalisation, e.g. ``dict(type='SyncBN')``.
        zero_init: start the BN scale at 0, so that a residual branch starts as nothing.
        relu: end with a ReLU.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        norm_cfg: NormCfg = DEFAULT_NORM,
        zero_init: bool = False,
        relu: bool = False,
    ) -> None:
        super().__init__()
        self.relu = relu
        if stride == 1 and groups == in_channels == out_channels:
            self.conv: nn.Conv2d = DepthwiseConv2d(in_channels, kernel_size)
        else:
            layer = PointwiseConv2d if kernel_size == stride == groups == 1 else nn.Conv2d
            self.conv = layer(
                in_channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False
            )
        self.bn = build_norm_layer(norm_cfg, out_channels)[1]
        if zero_init:
            nn.init.zeros_(self.bn.weight)

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        return batch_norm(self.bn, self.conv(x), self.relu, add)

    def fuse(self) -> FusedConv2d:
        """One convolution, with bias, that computes the same in evaluation mode."""
        return FusedConv2d(fuse_conv_bn_eval(self.conv, self.bn), 'relu' if self.relu else 'none')


class ResidualConvBN(ConvBN):
    """``x + BN(conv(x))`` with a 3x3 depth-wise convolution."""

    def __init__(self, channels: int, norm_cfg: NormCfg = DEFAULT_NORM, zero_init: bool = False) -> None:
        super().__init__(channels, channels, 3, groups=channels, norm_cfg=norm_cfg, zero_init=zero_init)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, add=x)

    def fuse(self) -> FusedConv2d:
        """The convolution with the identity in the middle of its kernels."""
        conv = super().fuse()
        conv.weight.data[:, :, 1, 1] += 1
        return conv


class FFN(nn.Module):
    """``x + reduce(ReLU(expand(x)))``: two 1x1 :class:`ConvBN`, hidden width twice the input's."""

    def __init__(self, channels: int, norm_cfg: NormCfg = DEFAULT_NORM) -> None:
        super().__init__()
        self.expand = ConvBN(channels, 2 * channels, norm_cfg=norm_cfg, relu=True)
        self.reduce = ConvBN(2 * channels, channels, norm_cfg=norm_cfg, zero_init=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduce(self.expand(x), add=x)
