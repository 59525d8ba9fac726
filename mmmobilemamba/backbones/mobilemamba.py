"""MobileMamba as a backbone of OpenMMLab detectors and segmentors (CVPR 2025, arXiv 2411.15941)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn as nn
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ..arch import NUM_STAGES, Arch
from ..checkpoint import load_pretrained, prepare_backbone_state_dict
from ..deploy import fuse_children
from ..errors import UserError
from ..layers import Downsample, MobileMambaBlock, Stage, Stem
from ..layers.conv_bn import DEFAULT_NORM, NormCfg
from ..ops import check_backend


@MODELS.register_module()
class MobileMamba(BaseModule):
    """MobileMamba with multi-scale outputs.

    The stem is output 0, the three stages are outputs 1, 2 and 3, of strides 16, 16, 32 and 64.

    Args:
        arch: a published variant, ``'t2'``, ``'t4'``, ``'s6'``, ``'b1'``, ``'b2'`` or ``'b4'``, or a
            dict of the fields of :class:`Arch`.
        in_channels: channels of the image.
        out_indices: which outputs to return, increasing. Stages above the last are not built.
        frozen_stages: the stem (0) and the stages up to this one take no gradient and keep their BN
            statistics; -1 freezes nothing.
        norm_eval: keep all BN layers in evaluation mode while training.
        with_cp: recompute each block in the backward pass instead of keeping its activations.
        drop_path_rate: largest drop-path probability; None takes that of the variant.
        scan_backend: backend of :func:`mmmobilemamba.ops.selective_scan`.
        norm_cfg: config of the batch normalisations, e.g. ``dict(type='SyncBN', requires_grad=True)``.
        init_cfg: ``dict(type='Pretrained', checkpoint=…)`` takes a checkpoint of ours or of the
            authors, with or without classification head; ``prefix='backbone.'`` takes the backbone
            out of a detector's.

    Attributes:
        out_channels (tuple[int, ...]): channels of the returned feature maps.
        out_strides (tuple[int, ...]): their strides in pixels of the image.

    Raises:
        ValueError: for an argument that is not allowed, before anything is built.

    Example:
        >>> features = MobileMamba('b1')(torch.rand(1, 3, 512, 512))
        >>> [tuple(f.shape) for f in features]
        [(1, 200, 32, 32), (1, 376, 16, 16), (1, 448, 8, 8)]
    """

    def __init__(
        self,
        arch: str | dict[str, Any],
        in_channels: int = 3,
        out_indices: Sequence[int] = (1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        drop_path_rate: float | None = None,
        scan_backend: str = 'auto',
        norm_cfg: NormCfg = DEFAULT_NORM,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.arch = Arch.create(arch)
        self._check(in_channels, out_indices, frozen_stages, drop_path_rate, norm_cfg)
        for name, value in dict(norm_eval=norm_eval, with_cp=with_cp).items():
            if not isinstance(value, bool):
                raise ValueError(f'{name}={value!r} is not allowed: True or False')
        check_backend(scan_backend)
        self.in_channels = in_channels
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.deployed = False
        widths = self.arch.widths
        self.out_channels = tuple((widths[0], *widths)[i] for i in self.out_indices)
        self.out_strides = tuple((16, 16, 32, 64)[i] for i in self.out_indices)

        self.stem = Stem(in_channels, widths[0], norm_cfg)
        rate = self.arch.drop_path_rate if drop_path_rate is None else drop_path_rate
        rates = torch.linspace(0, rate, sum(self.arch.depths), device='cpu').split(self.arch.depths)
        self.num_stages = max(self.out_indices)
        for i in range(self.num_stages):
            downsample = Downsample(widths[i - 1], widths[i], norm_cfg) if i else nn.Identity()
            blocks = [self._make_block(i, drop.item(), scan_backend, norm_cfg) for drop in rates[i]]
            self.add_module(f'stage{i + 1}', Stage(downsample, blocks, with_cp))
        self._freeze_stages()

    @staticmethod
    def _check(
        in_channels: int,
        out_indices: Sequence[int],
        frozen_stages: int,
        drop_path_rate: float | None,
        norm_cfg: NormCfg,
    ) -> None:
        if not _is_int(in_channels) or in_channels < 1:
            raise ValueError(f'in_channels={in_channels!r} is not allowed: an integer of at least 1')
        allowed = range(NUM_STAGES + 1)
        if (
            not isinstance(out_indices, Sequence)
            or not out_indices
            or any(not _is_int(i) or i not in allowed for i in out_indices)
            or any(a >= b for a, b in pairwise(out_indices))
        ):
            raise ValueError(
                f'out_indices={out_indices!r} is not allowed: increasing integers out of '
                '0 (stem), 1, 2, 3 (stages), at least one'
            )
        if not _is_int(frozen_stages) or frozen_stages not in range(-1, NUM_STAGES + 1):
            raise ValueError(
                f'frozen_stages={frozen_stages!r} is not allowed: -1 (none), 0 (stem), or '
                '1, 2, 3 (stem and the stages up to that one)'
            )
        if frozen_stages > max(out_indices):
            raise ValueError(
                f'frozen_stages={frozen_stages} lies above the last stage that is built, '
                f'max(out_indices)={max(out_indices)}: lower it'
            )
        if drop_path_rate is not None and not (
            isinstance(drop_path_rate, int | float) and 0 <= drop_path_rate < 1
        ):
            raise ValueError(f'drop_path_rate={drop_path_rate!r} is not allowed: None, or in [0, 1)')
        norm = norm_cfg.get('type') if isinstance(norm_cfg, dict) else None
        norm = MODELS.get(norm) if isinstance(norm, str) else norm
        if not isinstance(norm, type) or not issubclass(norm, _BatchNorm):
            raise ValueError(
                f'norm_cfg={norm_cfg!r} is not allowed: the config of a batch normalisation, '
                "dict(type='BN') or dict(type='SyncBN')"
            )
        for name in ('affine', 'track_running_stats'):
            if not norm_cfg.get(name, True):
                raise ValueError(
                    f'norm_cfg={norm_cfg!r} is not allowed: initialisation and folding need the weights and '
                    f'statistics of the normalisations, leave out {name}'
                )

    def _make_block(
        self, stage: int, drop_path_rate: float, scan_backend: str, norm_cfg: NormCfg
    ) -> MobileMambaBlock:
        arch = self.arch
        return MobileMambaBlock(
            arch.widths[stage],
            drop_path_rate,
            norm_cfg,
            kernel_size=arch.kernel_sizes[stage],
            global_ratio=arch.global_ratios[stage],
            local_ratio=arch.local_ratios[stage],
            expansion=arch.ssm_expansion,
            d_state=arch.d_state,
            wavelet=arch.wavelet,
            wavelet_levels=arch.wavelet_levels,
            scan_backend=scan_backend,
        )

    @property
    def stages(self) -> list[nn.Module]:
        """The stem and the stages that are built, in order: ``stages[i]`` makes output i."""
        return [self.stem, *(getattr(self, f'stage{i + 1}') for i in range(self.num_stages))]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, in_channels, H, W) images → one map (B, C_i, H_i, W_i) per entry of ``out_indices``.

        The maps lie in memory as the images do, contiguous or channels-last.

        Raises:
            ValueError: for another shape, or images that are not of a floating-point type.
        """
        if x.dim() != 4 or x.shape[1] != self.in_channels or 0 in x.shape[2:] or not x.is_floating_point():
            raise ValueError(
                f'MobileMamba was given {x.dtype} of shape {tuple(x.shape)}; expected are floating-point '
                f'images (B, {self.in_channels}, H, W) of at least one pixel. Convert and normalise bytes '
                'first; for images of other channels build it with that in_channels.'
            )
        # That of the images: operators of mmcv, RoIAlign among them, take channels-last memory for the other.
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        memory_format = torch.channels_last if last else torch.contiguous_format
        if x.device.type == 'cpu' and not self.deployed:
            # Where the CPU's convolutions and matrix products, and the scan, are fastest.
            x = x.contiguous(memory_format=torch.channels_last)
        outputs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                outputs.append(x.contiguous(memory_format=memory_format))
        return tuple(outputs)

    def init_weights(self) -> None:
        """Load what ``init_cfg`` names, all of it or not at all; without it, keep the initial values."""
        if isinstance(self.init_cfg, dict) and self.init_cfg['type'] == 'Pretrained':
            if not self.init_cfg.get('checkpoint'):
                raise UserError(
                    'init_cfg of type Pretrained names no checkpoint: add checkpoint=FILE, or '
                    'leave init_cfg out to train from initial values'
                )
            load_pretrained(self, self.init_cfg['checkpoint'], self.init_cfg.get('prefix', ''))
            self._is_init = True
        else:
            super().init_weights()

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        prepare_backbone_state_dict(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def switch_to_deploy(self) -> None:
        """Fold what is linear: batch norms and identity branches into convolutions, scales into weights.

        The outputs stay the same up to rounding. Device and data type are kept; a second call does
        nothing. The folded network cannot be trained, and takes the checkpoints of folded ones only. On a
        CPU the compiled library computes its stem, and each stage, as one; forward hooks of the layers
        inside blocks do not run there, those of blocks make their stage run block by block. Stages and
        blocks are replaced by others, which take over the forward hooks.
        """
        if not self.deployed:
            self.eval()
            fuse_children(self)
            self.requires_grad_(False)
            self.deployed = True

    def _freeze_stages(self) -> None:
        for stage in self.stages[: self.frozen_stages + 1]:
            stage.eval()
            stage.requires_grad_(False)

    def train(self, mode: bool = True) -> 'MobileMamba':
        """Set training mode; frozen stages, and with ``norm_eval`` all BN layers, stay in eval mode."""
        if mode and self.deployed:
            raise UserError(
                'this MobileMamba was fused by switch_to_deploy() and can no longer be trained; build it '
                'anew from its config and load the un-fused checkpoint'
            )
        super().train(mode)
        self._freeze_stages()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
