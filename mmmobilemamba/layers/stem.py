"""The stem: four strided convolutions that make an image a sixteenth as high and wide."""

from collections import OrderedDict
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from ..ops import native
from .compiled import CompiledModule, in_float32, packed
from .conv_bn import DEFAULT_NORM, ConvBN, NormCfg


class Stem(nn.Sequential):
    """Four 3x3 :class:`ConvBN` of stride 2, a ReLU behind all but the last (MobileMamba, Sec. 3.2).

    Args:
        in_channels: channels of the images.
        channels: width of the result, a multiple of 8; the convolutions before have 1/8, 1/4, 1/2 of it.
        norm_cfg: config of the batch normalisations.

    Shape: (B, in_channels, H, W) → (B, channels, ceil(H/16), ceil(W/16)).
    """

    def __init__(self, in_channels: int, channels: int, norm_cfg: NormCfg = DEFAULT_NORM) -> None:
        convs = OrderedDict()
        for i, divisor in enumerate((8, 4, 2, 1)):
            # Numbered as in the authors' checkpoints, where the ReLUs between them count.
            convs[str(2 * i)] = ConvBN(
                in_channels, channels // divisor, 3, stride=2, norm_cfg=norm_cfg, relu=divisor > 1
            )
            in_channels = channels // divisor
        super().__init__(convs)

    def fuse(self) -> 'FoldedStem':
        """The same for inference."""
        return FoldedStem(self)


class FoldedStem(CompiledModule):
    """A :class:`Stem` of folded layers."""

    def _by_layers(self, x: Tensor) -> Tensor:
        if x.device.type == 'cpu':
            x = x.contiguous(memory_format=torch.channels_last)
        for conv in self.children():
            x = conv(x)
        return x

    @property
    def can_compile(self) -> bool:
        # In bfloat16, oneDNN's convolutions have instructions that the compiled ones do without.
        convs = list(self.children())
        return all(c.out_channels >= native.MIN_CHANNELS and c.weight.dtype == torch.float32 for c in convs)

    def add_to(self, layers: Any) -> None:
        convs, weights = list(self.children()), []
        for i, conv in enumerate(convs):
            # An image is read row by row of each channel, other maps pixel by pixel of each row.
            order = (0, 2, 1, 3) if i == 0 else (0, 2, 3, 1)
            weights += [packed(conv.weight.permute(order)), *in_float32(conv.bias)]
        layers.stem(convs[0].in_channels, weights)
