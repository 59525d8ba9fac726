"""The compiled library of CPU operators: ``csrc``, built by setup.py where torch and a compiler are."""

from functools import cache
from pathlib import Path

import torch


@cache
def missing() -> str | None:
    """Load the library; the reason where that is not possible."""
    libraries = sorted(Path(__file__).parents[1].glob('_native*'))
    if not libraries:
        return 'its kernel was not built when mmmobilemamba was installed'
    if not hasattr(torch.library, 'register_autograd'):
        return f'it needs torch 2.4 or later, this is {torch.__version__}'
    try:
        torch.ops.load_library(str(libraries[0]))
    except OSError as err:
        return f'its kernel was built for another torch and does not load ({err})'
    return None
