"""The MobileMamba block, and the down-sampling between stages."""

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from torch import Tensor

from ..ops import native
from .compiled import CompiledModule, kernel_weights, product_weights
from .conv_bn import DEFAULT_NORM, FFN, ConvBN, NormCfg, PointwiseConv2d, ResidualConvBN
from .fused_conv import FusedConv2d
from .mrffi import MRFFI


class MobileMambaBlock(nn.Module):
    """``x + drop_path(ffn_out(dw_out(mixer(ffn_in(dw_in(x))))))``, each of the five residual itself.

    Args:
        channels: width of input and output.
        drop_path_rate: probability of dropping the block's branch for a sample.
        norm_cfg: config of the batch normalisations.
        **mixer_options: further arguments of :class:`MRFFI`.
    """

    def __init__(
        self,
        channels: int,
        drop_path_rate: float = 0.0,
        norm_cfg: NormCfg = DEFAULT_NORM,
        **mixer_options: Any,
    ) -> None:
        super().__init__()
        self.dw_in = ResidualConvBN(channels, norm_cfg, zero_init=True)
        self.ffn_in = FFN(channels, norm_cfg)
        self.mixer = MRFFI(channels, norm_cfg=norm_cfg, **mixer_options)
        self.dw_out = ResidualConvBN(channels, norm_cfg, zero_init=True)
        self.ffn_out = FFN(channels, norm_cfg)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.ffn_out(self.dw_out(self.mixer(self.ffn_in(self.dw_in(x)))))
        return x + self.drop_path(y)

    def fuse(self) -> 'FoldedBlock':
        """The same for inference, which drops no paths."""
        return FoldedBlock(self)


class FoldedBlock(CompiledModule):
    """A :class:`MobileMambaBlock` of folded layers."""

    def _by_layers(self, x: Tensor) -> Tensor:
        return x + self.ffn_out(self.dw_out(self.mixer(self.ffn_in(self.dw_in(x)))))

    @property
    def can_compile(self) -> bool:
        return self.mixer.can_compile

    def add_to(self, layers: Any) -> None:
        weights = (
            _residual_weights(self.dw_in, self.ffn_in)
            + _residual_weights(self.dw_out, self.ffn_out)
            + self.mixer.compiled_weights()
        )
        layers.block(weights, self.mixer.global_branch.ss2d.out_norm.eps)


def _residual_weights(dw: FusedConv2d, ffn: FFN) -> list[Tensor]:
    return kernel_weights(dw) + product_weights(ffn.expand, ffn.reduce)


class SqueezeExcite(nn.Module):
    """Channel gate ``x · sigmoid(fc2(ReLU(fc1(mean(x)))))`` with a reduction of 4."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = PointwiseConv2d(channels, channels // 4, 1)
        self.fc2 = PointwiseConv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(pooled))))


class PatchMerging(nn.Module):
    """Halves height and width: 1x1 to four times the width, 3x3 stride-2 depth-wise, SE, 1x1."""

    def __init__(self, in_channels: int, out_channels: int, norm_cfg: NormCfg = DEFAULT_NORM) -> None:
        super().__init__()
        hidden = 4 * in_channels
        self.expand = ConvBN(in_channels, hidden, norm_cfg=norm_cfg, relu=True)
        self.dw = ConvBN(hidden, hidden, 3, stride=2, groups=hidden, norm_cfg=norm_cfg, relu=True)
        self.se = SqueezeExcite(hidden)
        self.project = ConvBN(hidden, out_channels, norm_cfg=norm_cfg)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.se(self.dw(self.expand(x))))


class Downsample(nn.Sequential):
    """Residual depth-wise convolution and FFN, :class:`PatchMerging`, then the same two again.

    Shape: (B, in_channels, H, W) → (B, out_channels, ceil(H/2), ceil(W/2)).
    """

    def __init__(self, in_channels: int, out_channels: int, norm_cfg: NormCfg = DEFAULT_NORM) -> None:
        super().__init__()
        self.dw_in = ResidualConvBN(in_channels, norm_cfg)
        self.ffn_in = FFN(in_channels, norm_cfg)
        self.merge = PatchMerging(in_channels, out_channels, norm_cfg)
        self.dw_out = ResidualConvBN(out_channels, norm_cfg)
        self.ffn_out = FFN(out_channels, norm_cfg)

    def fuse(self) -> 'FoldedDownsample':
        """The same for inference."""
        return FoldedDownsample(self)


class FoldedDownsample(CompiledModule):
    """A :class:`Downsample` of folded layers."""

    def _by_layers(self, x: Tensor) -> Tensor:
        return self.ffn_out(self.dw_out(self.merge(self.ffn_in(self.dw_in(x)))))

    @property
    def can_compile(self) -> bool:
        return min(self.dw_in.in_channels, self.dw_out.in_channels) >= native.MIN_CHANNELS

    def add_to(self, layers: Any) -> None:
        merge = self.merge
        layers.downsample(
            _residual_weights(self.dw_in, self.ffn_in)
            + _residual_weights(self.dw_out, self.ffn_out)
            + product_weights(merge.expand)
            + kernel_weights(merge.dw)
            + product_weights(merge.se.fc1, merge.se.fc2, merge.project)
        )
