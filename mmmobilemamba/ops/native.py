"""The compiled library of CPU operators: ``csrc``, built by setup.py where torch and a compiler are."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..compat import has_tangent, is_compiling


@cache
def missing() -> str | None:
    """Load the library; the reason where that is not possible."""
    # One for each release of torch, for its C++ interface changes: setup.py names them.
    libraries = {p.name.split('.')[0]: p for p in Path(__file__).parents[1].glob('_native_torch*')}
    if not libraries:
        return 'its kernel was not built when mmmobilemamba was installed'
    if not hasattr(torch.library, 'register_autograd'):
        return f'it needs torch 2.4 or later, this is {torch.__version__}'
    library = libraries.get('_native_torch' + '_'.join(torch.__version__.split('.')[:2]))
    if library is None:
        return f'its kernel was built for another torch ({", ".join(libraries)}), this is {torch.__version__}'
    try:
        torch.ops.load_library(str(library))
    except OSError as err:
        return f'its kernel does not load ({err})'
    return None


def usable(x: Tensor) -> bool:
    """Whether to compute with x there.

    Compilers and exports get the plain operations, which they fuse, and forward-mode derivatives those that
    have one.
    """
    return (
        not is_compiling()
        and not torch.jit.is_tracing()
        and x.device.type == 'cpu'
        and not has_tangent(x)
        and missing() is None
    )
