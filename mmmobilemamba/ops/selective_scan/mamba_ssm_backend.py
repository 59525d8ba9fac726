"""The CUDA kernel of the package mamba-ssm (https://github.com/state-spaces/mamba).

Its data types and shapes are narrower than ours: positions must be contiguous; u, delta, B and C of one
type of at most 32 bits; A, D and delta_bias float32, and so is a B or C without positions; and the groups
of B and C must agree. Half precision is accumulated in float32, then rounded once per direction.
"""

from collections.abc import Callable
from functools import cache, reduce
from importlib.util import find_spec

import torch
from torch import Tensor

from ...errors import UserError
from .interface import Backend, register

MODULE = 'mamba_ssm.ops.selective_scan_interface'
INSTALL = 'on a machine with CUDA, pip install --no-build-isolation mamba-ssm'


def _missing() -> str | None:
    reasons = []
    if not torch.cuda.is_available():
        reasons.append('torch finds no CUDA device')
    if find_spec('mamba_ssm') is None:
        reasons.append('the package mamba-ssm is not installed')
    return ' and '.join(reasons) or _import_error()


@cache
def _import_error() -> str | None:
    # Importing the package loads its CUDA extension, built for one version of torch; anything may happen.
    try:
        _kernel()
    except Exception as err:
        return f'importing {MODULE} failed with {type(err).__name__}: {err}'
    return None


def _kernel() -> Callable[..., Tensor]:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn


def _limits(device_type: str, dtype: torch.dtype, states: int) -> str | None:
    if device_type != 'cuda':
        return f'it runs on CUDA only, not on {device_type}'
    if dtype == torch.float64:
        return 'it computes in float32, not in float64'
    if states > 256:
        return f'it takes at most 256 states per channel, these have {states}'
    return None


def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    B, C = _with_common_groups(B, C, u.shape)
    by_position = [x for x in (u, delta, B, C) if x is u or x.dim() > 3]
    dtype = reduce(torch.promote_types, (x.dtype for x in by_position))
    A, D, delta_bias = (None if x is None else x.float() for x in (A, D, delta_bias))
    B, C = (x.float() if x.dim() == 3 else x.to(dtype) for x in (B, C))
    u_, delta = _contiguous_rows(u.to(dtype)), delta.to(dtype)
    y = None
    with torch.autocast(u.device.type, enabled=False):
        for k in range(delta.shape[1]):
            # Flipping the tensors of one direction moves less memory than joining both for one launch.
            flip = _flipped if k == 1 else _contiguous_rows
            out = _kernel()(
                flip(u_),
                flip(delta[:, k]),
                A[k],
                *(x[k] if x.dim() == 3 else flip(x[:, k]) for x in (B, C)),
                None if D is None else D[k].contiguous(),
                delta_bias=None if delta_bias is None else delta_bias[k].contiguous(),
                delta_softplus=delta_softplus,
            )
            y = out if k == 0 else y + out.flip(-1)
    if y.requires_grad:
        y.register_hook(_refuse_second_derivatives)
    return y.to(u.dtype)


def _with_common_groups(B: Tensor, C: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """B and C in forms that the kernel takes together: it assumes one group where B has no positions."""
    batch, channels, length = shape
    if B.dim() == 3 and C.dim() == 5 and C.shape[2] > 1:
        B = B[None, ..., None].expand(batch, -1, -1, -1, length)
    if B.dim() == C.dim() == 5 and B.shape[2] != C.shape[2]:
        B, C = (x.repeat_interleave(channels // x.shape[2], dim=2) for x in (B, C))
    return B, C


def _contiguous_rows(x: Tensor) -> Tensor:
    """x, or a copy unless positions are contiguous and rows begin where the kernel can read 16 bytes."""
    # A copy aligns the rows of what is contiguous no better than its beginning does.
    begins = (x.storage_offset(), *(() if x.is_contiguous() else x.stride()[:-1]))
    aligned = all(n * x.element_size() % 16 == 0 for n in begins)
    return x if x.stride(-1) == 1 and aligned else x.clone(memory_format=torch.contiguous_format)


def _flipped(x: Tensor) -> Tensor:
    return x.flip(-1).contiguous()


def _refuse_second_derivatives(grad: Tensor) -> None:
    # The kernel's backward pass would return gradients without a graph, that is, wrong second ones.
    if torch.is_grad_enabled():
        raise UserError(
            "The selective-scan backend 'mamba_ssm' cannot be differentiated twice, which "
            "backward(create_graph=True) asks for. Choose backend 'torch' or 'reference' for that."
        )


register(Backend('mamba_ssm', rank=30, scan=_scan, limits=_limits, missing=_missing, install=INSTALL))
