"""Convolution + BatchNorm, and the two residual units built from it."""

from typing import Any

import torch.nn as nn
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from torch import Tensor

NormCfg = dict[str, Any]
DEFAULT_NORM: NormCfg = dict(type='BN', eps=1e-5)


class ConvBN(nn.Module):
    """Convolution without bias, "same" padding, then batch normalisation.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd side of the square kernel.
        stride: stride of the convolution.
        groups: groups of the convolution; equal to ``in_channels`` it is depth-wise.
        norm_cfg: OpenMMLab config of the normalisation, e.g. ``dict(type='SyncBN')``.
        zero_init: start the BN scale at 0, so that a residual branch starts as nothing.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1,
                 groups: int = 1, norm_cfg: NormCfg = DEFAULT_NORM,
                 zero_init: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2,
                              groups=groups, bias=False)
        self.bn = build_norm_layer(norm_cfg, out_channels)[1]
        if zero_init:
            nn.init.zeros_(self.bn.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class ResidualConvBN(ConvBN):
    """``x + BN(conv(x))`` with a 3x3 depth-wise convolution."""

    def __init__(self, channels: int, norm_cfg: NormCfg = DEFAULT_NORM,
                 zero_init: bool = False) -> None:
        super().__init__(channels, channels, 3, groups=channels, norm_cfg=norm_cfg,
                         zero_init=zero_init)

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class FFN(nn.Module):
    """``x + reduce(ReLU(expand(x)))``: two 1x1 :class:`ConvBN`, hidden width twice the input's."""

    def __init__(self, channels: int, norm_cfg: NormCfg = DEFAULT_NORM) -> None:
        super().__init__()
        self.expand = ConvBN(channels, 2 * channels, norm_cfg=norm_cfg)
        self.reduce = ConvBN(2 * channels, channels, norm_cfg=norm_cfg, zero_init=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.reduce(F.relu(self.expand(x)))
