"""From the network that trains to the one that predicts: every exact fold of one linear layer into another.

A layer that can be folded has ``fuse()``, which returns what takes its place; the layers inside it are
folded first.
"""

import torch.nn as nn
from mmengine.logging import print_log

from .errors import UserError


def fuse_children(module: nn.Module) -> None:
    """Replace every layer below ``module`` that can be folded."""
    for name, child in module.named_children():
        fuse_children(child)
        if hasattr(child, 'fuse'):
            setattr(module, name, child.fuse())


def switch_to_deploy(model: nn.Module) -> None:
    """Fold every MobileMamba in a model, in place; see :meth:`MobileMamba.switch_to_deploy`.

    Args:
        model: a backbone, or a detector or segmentor that holds one; its weights are already loaded.

    Raises:
        UserError: when there is no backbone in it that can be folded.
    """
    backbones = [m for m in model.modules() if hasattr(m, 'switch_to_deploy')]
    if not backbones:
        raise UserError(
            f'{type(model).__name__} holds no backbone that can be fused for deployment; only '
            'MobileMamba can. Leave out --deploy.'
        )
    for backbone in backbones:
        backbone.switch_to_deploy()
    print_log('Fused for deployment: batch norms and scales folded into convolutions', logger='current')
