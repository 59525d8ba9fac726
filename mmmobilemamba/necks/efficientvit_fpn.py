"""The feature pyramid of EfficientViT's detectors, with levels finer than the backbone's."""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

XAVIER_UNIFORM = dict(type='Xavier', layer=['Conv2d', 'ConvTranspose2d'], distribution='uniform')


@MODELS.register_module()
class EfficientViTFPN(BaseModule):
    """Feature pyramid network with learned up-sampling beyond the finest backbone level.

    MobileMamba's finest level has stride 16, too coarse for small objects. This neck (first used in
    the detectors of EfficientViT, arXiv 2305.07027) is an FPN over the backbone levels plus finer
    levels made by transposed convolutions. No norm, no activation, every convolution with bias.

    With backbone strides 16, 32, 64 and ``num_outs=5``, one extra level gives strides 8, 16, 32,
    64, 128 (RetinaNet) and two give 4, 8, 16, 32, 64 (Mask R-CNN).

    Args:
        in_channels: Channels of the backbone's feature maps, finest first.
        out_channels: Channels of every output.
        num_outs: Number of outputs: ``num_extra_trans_convs`` finer levels, the backbone's levels,
            and as many coarser levels as are left.
        num_extra_trans_convs: Number of levels finer than the backbone's finest; each doubles the
            resolution of the one before.
        add_extra_convs: How coarser levels are made, as in mmdet's FPN: False, max-pooled from the
            last output; 'on_input', the first by a 3x3 stride-2 convolution from the backbone's
            last level, the others by one from the level before.
        init_cfg: Initialisation of the convolutions.

    Raises:
        ValueError: If a channel number is not positive, ``num_outs`` leaves no room for all
            levels, or ``add_extra_convs`` is unknown.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        num_outs: int = 5,
        num_extra_trans_convs: int = 1,
        add_extra_convs: Literal[False, 'on_input'] = False,
        init_cfg: dict | list[dict] | None = XAVIER_UNIFORM,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if not (isinstance(in_channels, Sequence) and in_channels) or min(*in_channels, out_channels) < 1:
            raise ValueError(
                'in_channels lists the channels of each backbone level and out_channels is one '
                'number, all of them positive, but '
                f'in_channels={in_channels!r}, out_channels={out_channels!r} were given.'
            )
        if num_extra_trans_convs < 0:
            raise ValueError(f'num_extra_trans_convs={num_extra_trans_convs} must be 0 or more.')
        if add_extra_convs not in (False, 'on_input'):
            raise ValueError(f"add_extra_convs={add_extra_convs!r} must be False or 'on_input'.")
        num_convs = len(in_channels) + num_extra_trans_convs
        if num_outs < num_convs:
            raise ValueError(
                f'num_outs={num_outs} is too small: {len(in_channels)} backbone levels and '
                f'num_extra_trans_convs={num_extra_trans_convs} make {num_convs} levels. '
                f'Use num_outs={num_convs} or more, or fewer extra levels.'
            )
        self.in_channels = tuple(in_channels)
        self.out_channels = out_channels
        self.num_outs = num_outs
        self.num_extra_trans_convs = num_extra_trans_convs

        def conv3x3(channels: int = out_channels, stride: int = 1) -> ConvModule:
            return ConvModule(channels, out_channels, 3, stride=stride, padding=1, act_cfg=None)

        def upsampling() -> ConvModule:
            cfg = dict(type='deconv')
            return ConvModule(out_channels, out_channels, 2, stride=2, conv_cfg=cfg, act_cfg=None)

        self.lateral_convs = nn.ModuleList(
            ConvModule(channels, out_channels, 1, act_cfg=None) for channels in in_channels
        )
        self.fpn_convs = nn.ModuleList(conv3x3() for _ in in_channels)
        if add_extra_convs:
            for i in range(num_outs - num_convs):
                self.fpn_convs.append(conv3x3(in_channels[-1] if i == 0 else out_channels, stride=2))
        self.extra_trans_convs = nn.ModuleList(upsampling() for _ in range(num_extra_trans_convs))
        self.extra_fpn_convs = nn.ModuleList(conv3x3() for _ in range(num_extra_trans_convs))

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Merge the backbone's feature maps into a pyramid.

        Args:
            inputs: Feature maps (batch, in_channels[i], H_i, W_i), finest first. Sizes need not be
                multiples of each other.

        Returns:
            ``num_outs`` maps of ``out_channels`` channels, finest first. The finest is
            ``2 ** num_extra_trans_convs`` times the size of ``inputs[0]``.

        Raises:
            ValueError: If the number of inputs or their channels are not ``in_channels``.
        """
        channels = tuple(x.shape[1] for x in inputs)
        if channels != self.in_channels:
            raise ValueError(
                f'EfficientViTFPN was built with in_channels={self.in_channels}, but the backbone '
                f'gives maps of {channels} channels. Set in_channels={list(channels)}.'
            )
        merged = [conv(x) for conv, x in zip(self.lateral_convs, inputs, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + F.interpolate(
                merged[i], size=merged[i - 1].shape[2:], mode='nearest'
            )

        outputs = [conv(x) for conv, x in zip(self.fpn_convs, merged, strict=False)]
        for i, conv in enumerate(self.fpn_convs[len(merged) :]):
            outputs.append(conv(inputs[-1] if i == 0 else outputs[-1]))
        x = merged[0]
        for upsample, conv in zip(self.extra_trans_convs, self.extra_fpn_convs, strict=True):
            x = upsample(x)
            outputs.insert(0, conv(x))
        while len(outputs) < self.num_outs:
            outputs.append(F.max_pool2d(outputs[-1], kernel_size=1, stride=2))
        return tuple(outputs)
