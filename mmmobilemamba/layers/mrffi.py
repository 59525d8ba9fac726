"""Multi-receptive-field feature interaction: the token mixer of MobileMamba."""

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ..ops import batch_norm, native
from .compiled import in_float32, kernel_weights, product_weights
from .conv_bn import DEFAULT_NORM, ConvBN, DepthwiseConv2d, NormCfg
from .fused_conv import FusedConv2d
from .ss2d import SS2D
from .wavelet import WaveletConv


def split_channels(channels: int, global_ratio: float, local_ratio: float) -> tuple[int, int, int]:
    """Channels of the global, local and identity branches.

    The global share is rounded to the nearest multiple of 16 (a tie goes up); the local one is cut
    to what is left; the identity takes the rest.

    Raises:
        ValueError: when the global branch would be empty or wider than ``channels``.
    """
    wide = (int(global_ratio * channels) + 8) // 16 * 16
    if not 0 < wide <= channels:
        raise ValueError(
            f'global_ratio={global_ratio} of {channels} channels rounds to {wide} (a multiple of 16); '
            f'it must lie in 16..{channels}: change the width of the stage or the ratio'
        )
    local = min(int(local_ratio * channels), channels - wide)
    return wide, local, channels - wide - local


class MKDeConv(nn.Module):
    """Local branch: k x k depth-wise convolution, BN, ReLU, 1x1 depth-wise convolution, BN."""

    def __init__(self, channels: int, kernel_size: int, norm_cfg: NormCfg = DEFAULT_NORM) -> None:
        super().__init__()
        self.dwconv = DepthwiseConv2d(channels, kernel_size)
        self.bn1 = build_norm_layer(norm_cfg, channels)[1]
        self.pointwise = nn.Conv2d(channels, channels, 1, groups=channels, bias=False)
        self.bn2 = build_norm_layer(norm_cfg, channels)[1]

    def forward(self, x: Tensor) -> Tensor:
        x = batch_norm(self.bn1, self.dwconv(x), relu=True)
        # One factor per channel: a convolution in the authors' words, faster as a product.
        return batch_norm(self.bn2, x * self.pointwise.weight.transpose(0, 1))

    def fuse(self) -> nn.Sequential:
        """Both batch normalisations folded into the convolution before them."""
        return nn.Sequential(
            FusedConv2d(fuse_conv_bn_eval(self.dwconv, self.bn1), 'relu'),
            ChannelAffine(fuse_conv_bn_eval(self.pointwise, self.bn2)),
        )


class ChannelAffine(nn.Module):
    """A 1x1 depth-wise convolution with bias, as the product and sum that it is."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach().transpose(0, 1))
        self.bias = nn.Parameter(conv.bias.detach().view(self.weight.shape))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, x, self.weight)


class WaveletMamba(nn.Module):
    """Global branch (WTE-Mamba): ``base_scale · SS2D(x) + WaveletConv(x)``."""

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        expansion: float = 2.0,
        d_state: int = 1,
        wavelet: str = 'haar',
        wavelet_levels: int = 1,
        scan_backend: str = 'auto',
        norm_cfg: NormCfg = DEFAULT_NORM,
    ) -> None:
        super().__init__()
        self.ss2d = SS2D(channels, expansion, d_state, scan_backend, norm_cfg)
        self.base_scale = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.wavelet = WaveletConv(channels, kernel_size, wavelet, wavelet_levels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.ss2d(x)
        if self.base_scale is not None:
            y = self.base_scale * y
        return y + self.wavelet(x)

    def fuse(self) -> 'WaveletMamba':
        """Fold the scale into the output projection, which is a convolution by now."""
        for tensor in (self.ss2d.out_proj.weight, self.ss2d.out_proj.bias):
            tensor.data *= self.base_scale.data.view(-1, *[1] * (tensor.dim() - 1))
        self.base_scale = None
        return self


class MRFFI(nn.Module):
    """``x + proj(ReLU([global(x_g), local(x_l), x_i]))`` over a split of the channels (Sec. 3.2).

    Args:
        channels: width of input and output.
        kernel_size: depth-wise kernel of the local branch and of the wavelet convolution.
        global_ratio: share of the channels mixed by :class:`WaveletMamba`.
        local_ratio: share mixed by :class:`MKDeConv`.
        norm_cfg: config of the batch normalisations.
        **global_options: further arguments of :class:`WaveletMamba`.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        global_ratio: float,
        local_ratio: float,
        norm_cfg: NormCfg = DEFAULT_NORM,
        **global_options: Any,
    ) -> None:
        super().__init__()
        self.splits = split_channels(channels, global_ratio, local_ratio)
        self.global_branch = WaveletMamba(self.splits[0], kernel_size, norm_cfg=norm_cfg, **global_options)
        self.local_branch = MKDeConv(self.splits[1], kernel_size, norm_cfg) if self.splits[1] else None
        self.proj = ConvBN(channels, channels, norm_cfg=norm_cfg, zero_init=True)

    def forward(self, x: Tensor) -> Tensor:
        # A part without channels would make PyTorch forget that the memory is channels-last.
        wide, *rest = x.split([n for n in self.splits if n], dim=1)
        branches = [self.global_branch(wide)]
        if self.local_branch is not None:
            branches.append(self.local_branch(rest.pop(0)))
        mixed = torch.cat(branches + rest, dim=1)
        mixed = F.relu(mixed, inplace=True)
        return self.proj(mixed, add=x)

    @property
    def can_compile(self) -> bool:
        """Whether the compiled library computes a folded block with this mixer."""
        ss2d, wavelet = self.global_branch.ss2d, self.global_branch.wavelet
        narrowest = min(ss2d.conv.in_channels, *(n for n in self.splits[:2] if n))
        known = narrowest >= native.MIN_CHANNELS and wavelet.convs[0].kernel_size[0] in native.KERNEL_SIZES
        return known and wavelet.is_haar_level and ss2d.can_compile

    def compiled_weights(self) -> list[Tensor]:
        """Folded weights in the order in which it reads them."""
        ss2d, wavelet = self.global_branch.ss2d, self.global_branch.wavelet
        weights = ss2d.compiled_weights() + wavelet.compiled_weights() + product_weights(self.proj)
        if self.local_branch is not None:
            conv, affine = self.local_branch
            weights += kernel_weights(conv) + in_float32(affine.weight.flatten(), affine.bias.flatten())
        return weights
