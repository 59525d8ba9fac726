"""Whole models are loaded whole, or not at all."""

import re
from collections.abc import Sequence
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from ..backbones import MobileMamba
from ..checkpoint import (
    CheckpointError,
    check_class_order,
    describe_misfit,
    extract_state_dict,
    prepare_backbone_state_dict,
)
from ..datasets.layout import shorten


@HOOKS.register_module()
class StrictLoadHook(Hook):
    """Refuses a checkpoint that leaves a tensor of the model unfilled, or has one of no use, and one whose
    classes are those of the data in another order.

    MMEngine only warns of such tensors, and the warning is easily missed. The backbone's part may
    be in the authors' layout, and is converted.

    Args:
        reinit: Beginnings of parameter names that keep their initial values whatever the checkpoint
            holds; None where all weights are needed, as for testing and resuming.
    """

    # Before EMAHook, which copies the weights that are about to be loaded.
    priority = 'VERY_HIGH'

    def __init__(self, reinit: Sequence[str] | None = None) -> None:
        self.reinit = reinit

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Replace the checkpoint's weights by those that fill the model exactly.

        Raises:
            CheckpointError: If there are none, or they would name the classes wrongly.
        """
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        checkpoint['state_dict'] = fit_state_dict(model, extract_state_dict(checkpoint), self.reinit)
        if not self.reinit:
            # The loop that is about to run has given it those of its data set.
            meta = runner.visualizer.dataset_meta or {}
            check_class_order(checkpoint, meta.get('classes') or ())


def fit_state_dict(
    model: nn.Module, state_dict: dict[str, Tensor], reinit: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """The weights of a checkpoint as exactly the tensors of a model.

    Args:
        model: Detector or segmentor.
        state_dict: Tensors of the checkpoint; a MobileMamba's may be in the authors' layout.
        reinit: Beginnings of parameter names that keep the values they have in the model; None
            where that is no way out.

    Raises:
        CheckpointError: If a tensor is missing, left over or of another shape.
    """
    can_reinit, reinit = reinit is not None, tuple(reinit or ())
    expected = model.state_dict()
    kept = {key: value for key, value in expected.items() if key.startswith(reinit)}
    for start in reinit:
        if not any(key.startswith(start) for key in kept):
            modules = dict.fromkeys('.'.join(key.split('.')[:2]) for key in expected)
            raise CheckpointError(
                f'reinit {start!r} is the beginning of no parameter name of the model. Names begin '
                f'with: {shorten(modules, 30)}.'
            )
    given = dict(state_dict)
    for name, module in model.named_modules():
        prefix = f'{name}.' if name else ''
        if isinstance(module, MobileMamba) and not prefix.startswith(reinit):
            prepare_backbone_state_dict(module, given, prefix, reinit)
    given = {key: value for key, value in given.items() if not key.startswith(reinit)}
    wanted = {key: value for key, value in expected.items() if key not in kept}
    if misfit := describe_misfit(wanted, given):
        raise CheckpointError(
            f'The checkpoint does not fit the {type(model).__name__} of the config:\n{misfit}\n'
            + _advice(wanted, given, can_reinit)
        )
    if kept:
        print_log(
            f'{len(kept)} tensors keep their initial values (reinit): {shorten(kept)}',
            logger='current',
        )
    return {**given, **kept}


def _advice(wanted: dict[str, Tensor], given: dict[str, Tensor], can_reinit: bool) -> str:
    if wanted.keys() != given.keys() or not can_reinit:
        return (
            'Take the config that the checkpoint was made with, and data with its classes (--data-root), '
            'or another checkpoint.'
        )
    reshaped = [key for key in wanted if wanted[key].shape != given[key].shape]
    layers = dict.fromkeys(re.sub(r'\.(weight|bias)$', '', key) for key in reshaped)
    return f'To train these layers anew for other classes, add: --reinit {" ".join(layers)}'
