"""One level of the 2-D Haar wavelet transform by additions alone, compiled on CPUs or in PyTorch."""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from . import native


def haar_analysis(x: Tensor) -> Tensor:
    """Twice the orthonormal Haar transform, which a factor in the layer behind it makes good.

    Args:
        x: (B, C, H, W), any strides. What an odd H or W lacks is taken as zero.

    Returns:
        (B, 4C, ceil(H/2), ceil(W/2)): ``[LL, HL, LH, HH]`` along the channels (``cA, cH, cV, cD`` of
        PyWavelets' ``dwt2``), in the memory format of x.
    """
    if _runs_natively(x):
        return torch.ops.mmmobilemamba.haar_analysis(x)
    height, width = x.shape[2:]
    if height % 2 or width % 2:
        x = F.pad(x, (0, width % 2, 0, height % 2))
    corners = (x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1))
    return torch.cat(_butterfly(*corners), dim=1)


def haar_synthesis(y: Tensor, height: int, width: int) -> Tensor:
    """Twice the inverse of the orthonormal Haar transform, and the adjoint of :func:`haar_analysis`.

    Args:
        y: (B, 4C, ceil(height/2), ceil(width/2)), as :func:`haar_analysis` gives it.
        height: rows of the result, which leaves out a last odd one.
        width: columns of the result.

    Returns:
        (B, C, height, width), in the memory format of y.
    """
    if _runs_natively(y):
        return torch.ops.mmmobilemamba.haar_synthesis(y, height, width)
    corners = _butterfly(*y.chunk(4, dim=1))
    if y.is_contiguous(memory_format=torch.channels_last) and not y.is_contiguous():
        tl, tr, bl, br = (corner.permute(0, 2, 3, 1) for corner in corners)
        x = torch.stack((torch.stack((tl, tr), dim=3), torch.stack((bl, br), dim=3)), dim=2)
        x = x.flatten(1, 2).flatten(2, 3).permute(0, 3, 1, 2)
    else:
        tl, tr, bl, br = corners
        x = torch.stack((torch.stack((tl, tr), dim=4), torch.stack((bl, br), dim=4)), dim=3)
        x = x.flatten(2, 3).flatten(3, 4)
    return x[:, :, :height, :width]


def _butterfly(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> tuple[Tensor, ...]:
    """Twice the orthonormal 4-point Hadamard transform, which is its own inverse."""
    top, bottom, top_diff, bottom_diff = a + b, c + d, a - b, c - d
    return top + bottom, top - bottom, top_diff + bottom_diff, top_diff - bottom_diff


def _runs_natively(x: Tensor) -> bool:
    # Where the library is missing, the scan, which needs it more, says so in the log.
    return native.usable(x) and _operators_registered()


@cache
def _operators_registered() -> bool:
    name = 'mmmobilemamba::haar_'
    torch.library.register_fake(name + 'analysis', _fake_analysis)
    torch.library.register_fake(name + 'synthesis', _fake_synthesis)
    return True


def _memory_format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.stride(1) == 1 else torch.contiguous_format


def _fake_analysis(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    bands = x.new_empty(b, 4 * c, (h + 1) // 2, (w + 1) // 2)
    return bands.to(memory_format=_memory_format(x))


def _fake_synthesis(y: Tensor, height: int, width: int) -> Tensor:
    image = y.new_empty(y.shape[0], y.shape[1] // 4, height, width)
    return image.to(memory_format=_memory_format(y))
