"""What the maintained forks of the OpenMMLab packages (``onedl-*``) and old versions of torch need."""

from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec

import torch
from mmengine.config import utils
from torch import Tensor
from torch.autograd import forward_ad

# Whether torch.compile or torch.export is reading the code; torch 2.1 and 2.2 have it elsewhere.
is_compiling = getattr(torch.compiler, 'is_compiling', None) or torch._dynamo.is_compiling


def has_tangent(x: Tensor) -> bool:
    """Whether a forward-mode derivative (torch.func.jvp) is being taken through x.

    Operators that are registered with torch.library lose it without a word.
    """
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(x).tangent is not None


def in_transform() -> bool:
    """Whether a transform of torch.func is under way; none goes through autograd functions of C++."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def autocasts_on_cpu() -> bool:
    """Whether torch.autocast chooses the data types on a CPU; torch 2.1 to 2.3 have it elsewhere."""
    if hasattr(torch, 'get_autocast_dtype'):
        return torch.is_autocast_enabled('cpu')
    return torch.is_autocast_cpu_enabled()


def find_mmseg_configs() -> None:
    """Let ``_base_ = 'mmseg::…'`` find an MMSegmentation that was installed under another name.

    MMEngine asks for the distribution ``mmsegmentation``; the fork is ``onedl-mmsegmentation``.
    """
    names = utils.MODULE2PACKAGE
    try:
        distribution(names['mmseg'])
    except PackageNotFoundError:
        if find_spec('mmseg') is not None:
            names['mmseg'] = 'mmseg'
