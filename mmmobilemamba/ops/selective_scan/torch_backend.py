"""The selective scan vectorised in plain PyTorch, for any device; the symbols are those of :mod:`.reference`.

The L positions are cut into c chunks of T. A chunk maps the state that enters it to ``p · h + s``, and all
chunks find their p and s at once in T steps; a scan over the c pairs (the same scan, T times shorter)
gives the state that enters each chunk, and T more steps fill in the states between. This never divides by
a product of decays, so that nothing overflows. p is a power whose exponent is a sum: where decays are so
near 1 that they lose most of their digits, products of them would be wrong from the start.

The work goes through tiles of channels that stay in the processor's cache. Arrays of a tile are laid out as
(b, c · T, d) or (b, c · T, N, d), d channels innermost: one step touches a contiguous row in each chunk.
The backward pass computes the states of a tile anew, so that between the two passes nothing but the inputs
is kept.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor

from . import reference
from .interface import Backend, compute_dtype, register

LOG2_E = 1 / math.log(2)
CPU_TILE = 1 << 20
DEVICE_TILE = 1 << 24


@dataclass(frozen=True)
class _Tiling:
    """How the work is cut: tiles of b × d systems, and in each T steps × c chunks of positions."""

    batch: int
    channels: int
    length: int
    steps: int
    chunks: int

    @classmethod
    def of(cls, u: Tensor, states: int, groups: int) -> '_Tiling':
        batch, channels, length = u.shape
        size = (CPU_TILE if u.device.type == 'cpu' else DEVICE_TILE) // (length * states)
        steps = _chunk_length(length)
        d = _divisor_up_to(channels // groups, size)
        b = _divisor_up_to(batch, size // d) if d == channels else 1
        return cls(b, d, length, steps, -(-length // steps))

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.batch, self.steps * self.chunks, self.channels

    def load(self, x: Tensor, out: Tensor) -> Tensor:
        """Copy x (b, d, L) to out (b, c·T, d), with zeros behind the last position."""
        if self.length < out.shape[1]:
            out[:, self.length :] = 0
        _copy_transposed(x, out[:, : self.length], 32)
        return out

    def store(self, x: Tensor, out: Tensor) -> None:
        """Copy x (b, c·T, d) to out (b, d, L)."""
        _copy_transposed(x[:, : self.length], out, 256)

    def load_rows(self, x: Tensor) -> Tensor:
        """Give x (b, N, L) as (b, c·T, N, 1), to be combined with (b, c·T, N, d)."""
        return F.pad(x, (0, self.steps * self.chunks - self.length)).transpose(1, 2)[..., None]

    def rows(self, x: Tensor) -> Tensor:
        """Give x (b, c·T, N) as (b, N, L)."""
        return x[:, : self.length].transpose(1, 2)


def _divisor_up_to(n: int, limit: int) -> int:
    return next(k for k in range(max(1, min(n, limit)), 0, -1) if n % k == 0)


def _chunk_length(n: int) -> int:
    """T for n positions: near 12, and if possible a divisor of n, which saves padding."""
    divisors = [t for t in range(6, 25) if n % t == 0]
    return min(divisors, key=lambda t: abs(math.log(t / 12)), default=12)


def _copy_transposed(x: Tensor, out: Tensor, width: int) -> None:
    """Copy x (b, m, n) to out (b, n, m).

    One row of out takes one element from each row of x. Where those share the few places that a cache of a
    CPU has for addresses a power of two apart, they are gone before the next row needs their neighbours:
    only ``width`` columns of out are copied at once then.
    """
    x = x.transpose(1, 2)
    if x.device.type != 'cpu' or x.stride(2) * x.element_size() % 1024:
        width = x.shape[2]
    for part, out_part in zip(x.split(width, 2), out.split(width, 2), strict=True):
        out_part.copy_(part)


def _scan_(
    decay: Tensor, log_products: Tensor, state: Tensor, backwards: bool, delayed: bool = False
) -> None:
    """``state_l += decay_l · state_{l-1}`` over all positions in place; decay and state (b, c·T, N, d).

    Where ``delayed``, the factor is decay_{l-1}. ``log_products`` (b, c, N, d) holds the logarithm to base 2
    of the product of the factors of each chunk.
    """
    chunks = log_products.shape[1]
    a, h = (x.unflatten(1, (chunks, -1)).unbind(2) for x in (decay, state))
    if delayed:
        edge, last = torch.zeros_like(a[0]), a[0 if backwards else -1]
        _neighbours(edge, backwards)[1].copy_(_neighbours(last, backwards)[0])
        a = (*a[1:], edge) if backwards else (edge, *a[:-1])
    order = range(len(h))[:: -1 if backwards else 1]
    first = order[0]
    if chunks > 1:
        s = h[first].clone()
        for t in order[1:]:
            torch.addcmul(h[t], a[t], s, out=s)
        s = _scan_chunks(log_products, s, backwards)
        into, out_of = (slice(None, -1), slice(1, None))[:: 1 if backwards else -1]
        h[first][:, into].addcmul_(a[first][:, into], s[:, out_of])
    for previous, t in pairwise(order):
        h[t].addcmul_(a[t], h[previous])


def _scan_chunks(log_decay: Tensor, state: Tensor, backwards: bool) -> Tensor:
    """The same scan over dimension 1 of both (b, c, N, d), with factors 2 ** log_decay."""
    count = log_decay.shape[1]
    steps = count if count < 32 else _chunk_length(count)
    if padding := -count % steps:
        log_decay, state = (F.pad(x, (0, 0, 0, 0, 0, padding)) for x in (log_decay, state))
    _scan_(log_decay.exp2(), _chunk_sums(log_decay, steps), state, backwards)
    return state[:, :count]


def _chunk_sums(x: Tensor, steps: int, backwards: bool = False, delayed: bool = False) -> Tensor:
    """Sums (b, c, ...) of x (b, c·T, ...) over each chunk; where ``delayed``, of x_{l-1} for each l in it."""
    x = x.unflatten(1, (-1, steps))
    if not delayed:
        return x.sum(2)
    inside, last = (x[:, :, 1:], x[:, :, 0]) if backwards else (x[:, :, :-1], x[:, :, -1])
    sums = inside.sum(2)
    _neighbours(sums, backwards)[1].add_(_neighbours(last, backwards)[0])
    return sums


def _neighbours(x: Tensor, backwards: bool) -> tuple[Tensor, Tensor]:
    """x (b, n, ...) but for what is scanned last, and for each of those what is scanned next."""
    return (x[:, 1:], x[:, :-1]) if backwards else (x[:, :-1], x[:, 1:])


class _Work:
    """The arguments of one call, and the buffers that its tiles use one after the other."""

    def __init__(
        self,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        delta_bias: Tensor | None,
        delta_softplus: bool,
    ) -> None:
        dtype = compute_dtype(u, delta, A, B, C, D, delta_bias)
        self.u_source, self.delta_source, self.delta_softplus = u, delta, delta_softplus
        self.A, self.B, self.C, self.D, self.delta_bias = (
            None if x is None else x.to(dtype) for x in (A, B, C, D, delta_bias)
        )
        groups = math.lcm(*(x.shape[2] for x in (B, C) if x.dim() == 5))
        self.tiling = _Tiling.of(u, A.shape[2], groups)
        self.u, self.delta = self.buffer(), self.buffer()
        self.decay, self.state = self.state_buffer(), self.state_buffer()

    def buffer(self) -> Tensor:
        """Room for (b, c·T, d)."""
        return self.A.new_empty(self.tiling.shape)

    def state_buffer(self) -> Tensor:
        """Room for (b, c·T, N, d)."""
        return self.A.new_empty(*self.tiling.shape[:2], self.A.shape[2], self.tiling.channels)

    def tiles(self) -> Iterator['_Tile']:
        batch, channels = self.u_source.shape[:2]
        for image in range(0, batch, self.tiling.batch):
            for channel in range(0, channels, self.tiling.channels):
                yield _Tile(
                    self,
                    slice(image, image + self.tiling.batch),
                    slice(channel, channel + self.tiling.channels),
                )


@dataclass(frozen=True)
class _Tile:
    """Some images and channels of the work."""

    work: _Work
    images: slice
    channels: slice

    def load(self, x: Tensor, out: Tensor, k: int | None = None) -> Tensor:
        """Copy this tile of x (b, D, L), or of direction k of x (b, K, D, L), to out (b, c·T, d)."""
        return self.work.tiling.load(self._of(x, k), out)

    def store(self, x: Tensor, out: Tensor, k: int | None = None) -> None:
        """Copy x (b, c·T, d) to this tile of out (b, D, L), or of direction k of out (b, K, D, L)."""
        self.work.tiling.store(x, self._of(out, k))

    def _of(self, x: Tensor, k: int | None) -> Tensor:
        return x[self.images, self.channels] if k is None else x[self.images, k, self.channels]

    def load_rows(self, x: Tensor, k: int) -> Tensor:
        """Direction k of B or C, to be combined with (b, c·T, N, d)."""
        if x.dim() == 3:
            return x[k, self.channels].t().contiguous()
        return self.work.tiling.load_rows(x[self.images, k, self._group(x)])

    def add_rows(self, product: Tensor, k: int, out: Tensor) -> None:
        """Sum product (b, c·T, N, d) into direction k of the gradient of B or C."""
        if out.dim() == 3:
            out[k, self.channels] += product.sum((0, 1)).t()
        else:
            out[self.images, k, self._group(out)] += self.work.tiling.rows(product.sum(-1))

    def _group(self, x: Tensor) -> int:
        return self.channels.start * x.shape[2] // self.work.u_source.shape[1]

    def discretise(self, k: int, slope: Tensor | None = None) -> None:
        """Fill the buffers: Δ, exp(Δ A) and Δ B u of direction k; in slope, dΔ / d delta."""
        work = self.work
        z = self.load(work.delta_source, work.delta, k)
        if work.delta_bias is not None:
            z.add_(work.delta_bias[k, self.channels])
        if work.delta_softplus:
            if slope is not None:
                torch.sigmoid(z, out=slope)
            torch.logaddexp(z, z.new_zeros(()), out=z)  # F.softplus, in place
        elif slope is not None:
            slope.fill_(1)
        step = z.unsqueeze(2)
        torch.mul(step, self._log_decay_rate(k), out=work.decay).exp2_()
        if work.tiling.length < step.shape[1]:
            work.decay[:, work.tiling.length :] = 0
        torch.mul(work.u.unsqueeze(2), self.load_rows(work.B, k), out=work.state).mul_(step)

    def scan_(self, state: Tensor, k: int, backwards: bool, delayed: bool = False) -> None:
        """:func:`_scan_` of state with the decays of direction k."""
        sums = _chunk_sums(self.work.delta, self.work.tiling.steps, backwards, delayed)
        _scan_(self.work.decay, sums.unsqueeze(2) * self._log_decay_rate(k), state, backwards, delayed)

    def _log_decay_rate(self, k: int) -> Tensor:
        """A (N, d) of direction k, for powers of two."""
        return self.work.A[k, self.channels].t() * LOG2_E


def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> Tensor:
    y = torch.empty_like(u)
    work = _Work(u, delta, A, B, C, D, delta_bias, delta_softplus)
    total = work.buffer()
    for tile in work.tiles():
        tile.load(u, work.u)
        if D is None:
            total.zero_()
        else:
            torch.mul(work.u, work.D[:, tile.channels].sum(0), out=total)
        for k in range(delta.shape[1]):
            tile.discretise(k)
            tile.scan_(work.state, k, backwards=k == 1)
            rows = tile.load_rows(work.C, k)
            if A.shape[2] == 1:
                total.addcmul_(work.state.squeeze(2), rows.squeeze(-2))
            else:
                total.add_(work.state.mul_(rows).sum(2))
        tile.store(total, y)
    return y


def _backward(
    grad: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> list[Tensor]:
    """Gradients of the tensors that are not None, in their order.

    With the gradient g_t of h_t, itself a scan in the other direction:
    g_t = C_t dy_t + exp(Δ_{t+1} A) g_{t+1}.
    """
    work = _Work(u, delta, A, B, C, D, delta_bias, delta_softplus)
    du_all, ddelta_all = torch.empty_like(u), torch.empty_like(delta)
    sums = [work.A, work.B, work.C, work.D, work.delta_bias]
    dA, dB, dC, dD, dbias = sums = [None if x is None else torch.zeros_like(x) for x in sums]
    dy, du, slope = work.buffer(), work.buffer(), work.buffer()
    g, spare = work.state_buffer(), work.state_buffer()
    for tile in work.tiles():
        part = tile.channels
        tile.load(u, work.u)
        tile.load(grad, dy)
        if D is None:
            du.zero_()
        else:
            dD[:, part] += torch.mul(dy, work.u, out=du).sum((0, 1))
            torch.mul(dy, work.D[:, part].sum(0), out=du)
        for k in range(delta.shape[1]):
            tile.discretise(k, slope)
            decay, h, step = work.decay, work.state, work.delta.unsqueeze(2)
            torch.mul(dy.unsqueeze(2), tile.load_rows(work.C, k), out=g)
            tile.scan_(g, k, backwards=k == 0, delayed=True)
            tile.scan_(h, k, backwards=k == 1)
            tile.add_rows(torch.mul(h, dy.unsqueeze(2), out=spare), k, dC)
            kept = torch.mul(decay, g, out=spare)  # and then g_t exp(Δ_t A) h_{t-1}
            _neighbours(kept, k == 1)[1].mul_(_neighbours(h, k == 1)[0])
            kept[:, -k] = 0  # no state before the first position
            dA[k, part] += torch.mul(kept, step, out=decay).sum((0, 1)).t()
            tile.add_rows(torch.mul(g, step, out=h).mul_(work.u.unsqueeze(2)), k, dB)
            received = _over_states(g.mul_(tile.load_rows(work.B, k)))  # dL / d(Δ_t u_t)
            du.addcmul_(work.delta, received)
            ddelta = _over_states(kept.mul_(work.A[k, part].t()))
            ddelta.addcmul_(work.u, received).mul_(slope)
            if dbias is not None:
                dbias[k, part] += ddelta.sum((0, 1))
            tile.store(ddelta, ddelta_all, k)
        tile.store(du, du_all)
    given = [x for x in (A, B, C, D, delta_bias) if x is not None]
    sums = [x for x in sums if x is not None]
    return [du_all, ddelta_all, *(x.to(y.dtype) for x, y in zip(sums, given, strict=True))]


def _over_states(x: Tensor) -> Tensor:
    """Sum (b, c·T, N, d) over N, without a copy where N is 1."""
    return x.squeeze(2) if x.shape[2] == 1 else x.sum(2)


def _setup_context(ctx, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.delta_softplus = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    if torch.is_grad_enabled():
        grads = twice_differentiable(grad, tensors, ctx.delta_softplus)
    else:
        grads = _backward_op(grad, *tensors, ctx.delta_softplus)
    grads = iter(grads)
    return *(None if x is None else next(grads) for x in tensors), None


def twice_differentiable(
    grad: Tensor, tensors: tuple[Tensor | None, ...], delta_softplus: bool
) -> list[Tensor | None]:
    """The gradients through the reference, for backward(create_graph=True)."""
    _say_once_that_this_is_slow()
    # Aliases, so that a tensor computed from another one does not hand its gradient on to it here.
    aliases = [None if x is None else x.view_as(x) for x in tensors]
    y = reference.scan(*aliases, delta_softplus)
    needed = [x for x in aliases if x is not None and x.requires_grad]
    grads = iter(torch.autograd.grad(y, needed, grad, create_graph=True))
    return [next(grads) if x.requires_grad else None for x in aliases if x is not None]


@cache
def _say_once_that_this_is_slow() -> None:
    print_log(
        'A graph is being created of the gradient of a selective scan; the backend '
        "'torch' takes its gradient through the slow backend 'reference' for that.",
        logger='current',
    )


if hasattr(torch.library, 'custom_op'):
    # One node in the graphs of torch.compile, torch.export and torch.jit.trace instead of every step.
    _arguments = (
        'Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias, '
        'bool delta_softplus'
    )
    scan = torch.library.custom_op(
        'mmmobilemamba::selective_scan',
        _forward,
        mutates_args=(),
        schema=f'({_arguments}) -> Tensor',
    )
    scan.register_fake(lambda u, *rest: torch.empty_like(u))
    scan.register_autograd(_differentiate, setup_context=_setup_context)
    _backward_op = torch.library.custom_op(
        'mmmobilemamba::selective_scan_backward',
        _backward,
        mutates_args=(),
        schema=f'(Tensor grad, {_arguments}) -> Tensor[]',
    )
    _backward_op.register_fake(
        lambda grad, *rest: [torch.empty_like(x) for x in rest if isinstance(x, Tensor)]
    )
else:
    _backward_op = _backward

    class _Scan(torch.autograd.Function):
        forward = staticmethod(_forward)
        setup_context = staticmethod(_setup_context)
        backward = staticmethod(_differentiate)

    scan = _Scan.apply

register(Backend('torch', rank=10, scan=scan))
