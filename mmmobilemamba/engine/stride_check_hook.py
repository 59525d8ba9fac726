"""Heads that look for objects where their maps have them."""

from collections.abc import Iterator

import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ..backbones import MobileMamba
from ..errors import UserError

SIDE = 512  # pixels; of the strides that any head has, none is rounded


@HOOKS.register_module()
class StrideCheckHook(Hook):
    """Refuses to train detectors whose heads are set for other strides than their maps have.

    MobileMamba's maps have strides 16, 32 and 64 where ResNet's have 4 to 32, and heads written for those
    would train, without a word, on a corner of each image.
    """

    def before_train(self, runner: Runner) -> None:
        """Check the model.

        Raises:
            UserError: If a head is set for other strides.
        """
        check_strides(runner.model)


def check_strides(model: nn.Module) -> None:
    """Compare the strides that heads are set for with the maps that the backbone and neck give.

    Args:
        model: A detector, or a model that holds detectors. Only those on a MobileMamba are looked at.

    Raises:
        UserError: If one differs by more than SSD's approximate strides do.
    """
    for detector in model.modules():
        backbone = getattr(detector, 'backbone', None)
        heads = list(_head_strides(detector)) if isinstance(backbone, MobileMamba) else ()
        if not heads:
            continue
        sides = _map_sides(detector, backbone)
        for name, strides in heads:
            levels = list(zip(strides, sides, strict=False))
            # Of a map of one pixel, the stride cannot be told.
            if any(side > 1 and not 1 / 1.7 < stride * side / SIDE < 1.7 for stride, side in levels):
                raise UserError(
                    f'{name} is set for maps of strides {list(strides)}, but is given maps of strides '
                    f'{[round(SIDE / side) for side in sides]}: it would look for objects in wrong places. '
                    f'Set its strides to those (or change out_indices of the backbone, which gives strides '
                    f'{list(backbone.out_strides)}, or the neck).'
                )


def _head_strides(detector: nn.Module) -> Iterator[tuple[str, list[float]]]:
    """Settings of heads and RoI extractors, by name, with the strides of their levels."""
    for name, module in detector.named_modules():
        # The second is that of heads which shape their anchors: guided anchoring, SABL.
        for generator in ('prior_generator', 'square_anchor_generator'):
            strides = getattr(getattr(module, generator, None), 'strides', None)
            if strides is not None:
                yield f'{name}, in its anchor or point generator,', [width for width, _ in strides]
        # HTC's semantic extractor reads a map of its own.
        if hasattr(module, 'featmap_strides') and 'semantic' not in name:
            yield f'featmap_strides of {name}', module.featmap_strides


def _map_sides(detector: nn.Module, backbone: MobileMamba) -> list[int]:
    """Widths of the maps that the heads get for an image of ``SIDE`` pixels."""
    training, parameter = detector.training, next(detector.parameters())
    image = parameter.new_zeros(1, backbone.in_channels, SIDE, SIDE)
    detector.eval()
    try:
        with torch.no_grad():
            return [x.shape[-1] for x in detector.extract_feat(image)]
    finally:
        detector.train(training)
