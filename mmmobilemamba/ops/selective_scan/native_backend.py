"""The compiled CPU kernel.

It reads its inputs once per direction in any memory layout, keeps one state in 32 for the backward pass
and nothing of size (b, D, L, N), and computes in float32.
"""

from functools import cache

import torch
from mmengine.logging import print_log
from torch import Tensor
from torch.autograd.function import FunctionCtx

from .. import native
from . import torch_backend
from .interface import Backend, register

INSTALL = (
    'with a C++ compiler present, pip install --no-build-isolation --no-deps --force-reinstall . '
    'in a checkout of mmmobilemamba'
)


@cache
def _missing() -> str | None:
    reason = native.missing()
    if reason is None:
        _register_operators()
    return reason


def _limits(device_type: str, dtype: torch.dtype, states: int) -> str | None:
    if device_type != 'cpu':
        return f'it runs on a CPU only, not on {device_type}'
    if dtype == torch.float64:
        return 'it computes in float32, not in float64'
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
    if B.dim() == 3 or C.dim() == 3:
        _say_once_where_static_rows_go()
        return torch_backend.scan(u, delta, A, B, C, D, delta_bias, delta_softplus)
    moved = torch.bfloat16 if u.dtype == delta.dtype == torch.bfloat16 else torch.float32
    # The kernel takes one number of groups; where they differ, every channel becomes its own group.
    groups = B.shape[2] if B.shape[2] == C.shape[2] else u.shape[1]
    B, C = (_per_group(x, groups) for x in (B, C))
    rest = (None if x is None else x.float().contiguous() for x in (D, delta_bias))
    y, _ = torch.ops.mmmobilemamba.native_scan(
        u.to(moved), delta.to(moved), A.float().contiguous(), B, C, *rest, delta_softplus
    )
    return y.to(u.dtype)


# Logging would break a graph of torch.compile, which does not trace a function with this mark.
@torch.compiler.assume_constant_result
def _say_once_where_static_rows_go() -> None:
    _say_where_static_rows_go()


@cache
def _say_where_static_rows_go() -> None:
    print_log(
        "The selective-scan backend 'native' has no kernel for B or C of shape (D, N), the same at all "
        "positions; such calls run on the slower backend 'torch'.",
        logger='current',
    )


def _per_group(x: Tensor, groups: int) -> Tensor:
    x = x.float()
    return (x if x.shape[2] == groups else x.repeat_interleave(groups // x.shape[2], dim=2)).contiguous()


def _register_operators() -> None:
    torch.library.register_fake('mmmobilemamba::native_scan', _fake)
    torch.library.register_fake('mmmobilemamba::native_scan_backward', _fake_backward)
    torch.library.register_autograd(
        'mmmobilemamba::native_scan', _differentiate, setup_context=_setup_context
    )


def _sizes(u: Tensor, B: Tensor) -> tuple[int, int]:
    """Tiles of 32 positions, and blocks of 32 channels that do not cross a group."""
    groups = B.shape[2]
    return (u.shape[2] + 31) // 32, groups * ((u.shape[1] // groups + 31) // 32)


def _fake(u: Tensor, _: Tensor, A: Tensor, B: Tensor, *__: Tensor | bool | None) -> tuple[Tensor, Tensor]:
    tiles, _ = _sizes(u, B)
    states = A.new_empty(u.shape[0], A.shape[0], tiles, A.shape[2], u.shape[1])
    return torch.empty_like(u, dtype=torch.float32), states


def _fake_backward(
    _: Tensor, __: Tensor, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, *___: Tensor | bool | None
) -> tuple[Tensor, ...]:
    _, parts = _sizes(u, B)
    images, K, N = u.shape[0], A.shape[0], A.shape[2]
    dB = A.new_empty(images, K, parts, N, u.shape[2])
    dD = A.new_empty(images, K, u.shape[1])
    du, ddelta = (torch.empty_like(x, dtype=torch.float32) for x in (u, delta))
    return du, ddelta, A.new_empty(images, *A.shape), dB, torch.empty_like(dB), dD, torch.empty_like(dD)


def _setup_context(ctx: FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.delta_softplus = inputs
    ctx.save_for_backward(output[1], *tensors)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: FunctionCtx, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    states, *tensors = ctx.saved_tensors
    if torch.is_grad_enabled():
        grads = iter(torch_backend.twice_differentiable(grad, tuple(tensors), ctx.delta_softplus))
        return *(None if x is None else next(grads) for x in tensors), None
    u, delta, A, B, C, D, delta_bias = tensors
    du, ddelta, dA, dB, dC, dD, dbias = torch.ops.mmmobilemamba.native_scan_backward(
        grad, states, *tensors, ctx.delta_softplus
    )
    # One row per block of channels: add those of a group.
    dB, dC = (x.unflatten(2, (B.shape[2], -1)).sum(3) for x in (dB, dC))
    return (
        du.to(u.dtype),
        ddelta.to(delta.dtype),
        dA.sum(0),
        dB,
        dC,
        None if D is None else dD.sum(0),
        None if delta_bias is None else dbias.sum(0),
        None,
    )


register(Backend('native', rank=20, scan=_scan, limits=_limits, missing=_missing, install=INSTALL))
