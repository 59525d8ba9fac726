"""The compiled library of CPU operators: ``csrc``, built by setup.py where torch and a compiler are."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ..compat import has_tangent, in_transform, is_compiling

# What is compiled: for a vector of AVX-512 at least, and these windows of depth-wise convolutions.
MIN_CHANNELS, KERNEL_SIZES = 16, (3, 5, 7)
# The class that a library from before the last change does not have.
NEWEST = 'Layers'


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
    try:
        getattr(torch.classes.mmmobilemamba, NEWEST)
    except RuntimeError:
        return 'its kernel was built for an older version of mmmobilemamba'
    return None


def usable(x: Tensor) -> bool:
    """Whether to compute with x there."""
    return x.device.type == 'cpu' and not needs_plain_operators(x) and missing() is None


def needs_plain_operators(x: Tensor) -> bool:
    """Whether PyTorch's own operators must compute with x, and no special ones of ours or of oneDNN.

    Compilers and exports fuse the plain ones, the transforms of torch.func know them, and so do counts.
    """
    return _avoided or is_compiling() or torch.jit.is_tracing() or in_transform() or has_tangent(x)


_avoided = False


@contextmanager
def avoided() -> Iterator[None]:
    """Compute by PyTorch's own operators meanwhile."""
    global _avoided
    before, _avoided = _avoided, True
    try:
        yield
    finally:
        _avoided = before
