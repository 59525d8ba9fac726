"""The selective scan as the recurrence it is: one loop over the positions.

This file is the definition that every other backend is tested against. It is slow (every position costs
a dozen small operations) and remembers every state for the backward pass, but it is differentiable any
number of times and runs in any floating-point type on any device.

Symbols, as in Mamba (Gu and Dao, 2023, arXiv 2312.00752, section 3 and algorithm 2):

====== ====================================================================================
b      batch size
D      channels; each is an independent system ("d_inner" in the paper)
L      positions of the sequence
N      states of each channel
G      groups: channels g*D/G ... (g+1)*D/G - 1 share row g of B and C
K      directions: 1 scans positions 0 ... L-1; with 2, the second one scans L-1 ... 0
u_t    input at position t; y_t is the output
Δ_t    step size of each channel, positive ("delta")
A      decay rate of each state; negative in a stable system
B_t    how the input enters the states;  C_t: how the states are read
D      weight of the input that goes straight to the output (the skip; no relation to the count D)
h_t    state after position t, zero before the first
====== ====================================================================================
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .interface import Backend, compute_dtype, register


def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    """Run every direction and add the results; see :class:`.interface.Backend` for the shapes."""
    tensors = (u, delta, A, B, C, D, delta_bias)
    dtype, dtype_out = compute_dtype(*tensors), u.dtype
    u, delta, A, B, C, D, delta_bias = (x if x is None else x.to(dtype) for x in tensors)
    result = 0
    for k in range(delta.shape[1]):
        step = delta[:, k]
        if delta_bias is not None:
            step = step + delta_bias[k, :, None]
        if delta_softplus:
            step = F.softplus(step)
        B_k, C_k = (_every_channel_and_position(x, k, delta.shape) for x in (B, C))
        result = result + _recurrence(u, step, A[k], B_k, C_k, backwards=k == 1)
        if D is not None:
            result = result + D[k, :, None] * u
    return result.to(dtype_out)


def _recurrence(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, backwards: bool) -> Tensor:
    """u, delta (b, D, L); A (D, N); B, C broadcastable to (b, D, N, L). Returns (b, D, L)."""
    positions = list(zip(u.unbind(-1), delta.unbind(-1), B.unbind(-1), C.unbind(-1), strict=True))
    if backwards:
        positions.reverse()
    h = u.new_zeros(*u.shape[:2], A.shape[1])
    y = []
    for u_t, delta_t, B_t, C_t in positions:
        u_t, delta_t = u_t[..., None], delta_t[..., None]
        h = torch.exp(delta_t * A) * h + delta_t * B_t * u_t
        y.append((C_t * h).sum(-1))
    if backwards:
        y.reverse()
    return torch.stack(y, dim=-1)


def _every_channel_and_position(x: Tensor, k: int, shape: tuple[int, ...]) -> Tensor:
    """Direction k of B or C, (K, D, N) or (b, K, G, N, L), as (b or 1, D, N, L)."""
    D, L = shape[2:]
    if x.dim() == 3:
        return x[k, None, :, :, None].expand(-1, -1, -1, L)
    return x[:, k].repeat_interleave(D // x.shape[2], dim=1)


register(Backend('reference', rank=0, scan=scan))
