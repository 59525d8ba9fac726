"""The selective scan vectorised in plain PyTorch, for any device; the symbols are those of :mod:`.reference`.

The L positions are cut into c chunks of T. A chunk maps the state that enters it to ``p · h + s``, and all
chunks find their p and s at once in T steps; a scan over the c pairs (the same scan, T times shorter)
gives the state that enters each chunk, and T more steps fill in the states between. This never divides by
a product of decays, so that nothing overflows. p is a power whose exponent is a sum: where decays are so
near 1 that they lose most of their digits, products of them would be wrong from the start.

The work goes through tiles of channels that stay in the processor's cache. Arrays of a tile are
(b, d, N, T, c), or with 1 for N: one step touches the same position of all chunks. Those lie side by side in
memory, or where the inputs are channels last, the d channels do. The backward pass computes the states of a
tile anew, so that between the two passes nothing but the inputs is kept.
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
from torch.autograd.function import FunctionCtx

from . import reference
from .interface import Backend, compute_dtype, register

LOG2_E = 1 / math.log(2)
SOFTPLUS_IS_LINEAR = 40  # from here up, in every data type
CPU_TILE = 1 << 20
DEVICE_TILE = 1 << 24


@dataclass(frozen=True)
class _Tiling:
    """How the work is cut: tiles of b × d systems, and in each c chunks of T positions."""

    batch: int
    channels: int
    length: int
    steps: int
    chunks: int
    channels_last: bool

    @classmethod
    def of(cls, u: Tensor, states: int, groups: int) -> '_Tiling':
        batch, channels, length = u.shape
        size = (CPU_TILE if u.device.type == 'cpu' else DEVICE_TILE) // (length * states)
        steps = _chunk_length(length)
        d = _divisor_up_to(channels // groups, size)
        b = _divisor_up_to(batch, size // d) if d == channels else 1
        return cls(b, d, length, steps, -(-length // steps), channels > 1 and u.stride(1) == 1)

    @property
    def padding(self) -> int:
        """Number of the positions behind the last one."""
        return self.steps * self.chunks - self.length

    def buffer(self, like: Tensor, states: int = 1) -> Tensor:
        """Room for (b, d, N, T, c), of the data type and device of ``like``."""
        b, d, T, c = self.batch, self.channels, self.steps, self.chunks
        if self.channels_last:
            return like.new_empty(b, c, T, states, d).permute(0, 4, 3, 2, 1)
        return like.new_empty(b, d, states, T, c)

    def by_steps(self, x: Tensor) -> Tensor:
        """x (b, n, L) as (b, n, T, c), with zeros behind the last position."""
        if self.padding and self.channels_last:
            x = F.pad(x.mT, (0, 0, 0, self.padding)).mT
        elif self.padding:
            x = F.pad(x, (0, self.padding))
        return self._transposed(x.unflatten(2, (self.chunks, self.steps)))

    def by_positions(self, x: Tensor) -> Tensor:
        """x (b, n, T, c) as (b, n, L)."""
        return self._transposed(x).flatten(2)[..., : self.length]

    def _transposed(self, x: Tensor) -> Tensor:
        """x (b, d, m, n) as (b, d, n, m), contiguous unless the channels are; x itself, or a copy."""
        if self.channels_last or x.device.type != 'cpu':
            return x.mT
        # What is called channels here is the one vectorised transposition of the last dimensions.
        pixels = x.reshape(1, -1, 1, x.shape[2] * x.shape[3]).permute(0, 3, 1, 2)
        return torch.native_channel_shuffle(pixels, x.shape[2]).permute(0, 2, 3, 1).reshape(x.mT.shape)


def _divisor_up_to(n: int, limit: int) -> int:
    return next(k for k in range(max(1, min(n, limit)), 0, -1) if n % k == 0)


def _chunk_length(n: int) -> int:
    """T for n positions: near 12, and if possible a divisor of n, which saves padding."""
    divisors = [t for t in range(6, 25) if n % t == 0]
    return min(divisors, key=lambda t: abs(math.log(t / 12)), default=12)


def _scan_(
    decay: Tensor, log_products: Tensor, state: Tensor, backwards: bool, delayed: bool = False
) -> None:
    """``state_l += decay_l · state_{l-1}`` over all positions in place; decay and state (b, d, N, T, c).

    Where ``delayed``, the factor is decay_{l-1}. ``log_products`` (b, d, N, c) holds the logarithm to base 2
    of the product of the factors of each chunk.
    """
    a, h = decay.unbind(3), state.unbind(3)
    if delayed:
        edge, last = torch.zeros_like(a[0]), a[0 if backwards else -1]
        _neighbours(edge, backwards)[1].copy_(_neighbours(last, backwards)[0])
        a = (*a[1:], edge) if backwards else (edge, *a[:-1])
    order = range(len(h))[:: -1 if backwards else 1]
    first = order[0]
    if state.shape[4] > 1:
        s = h[first].clone()
        for t in order[1:]:
            torch.addcmul(h[t], a[t], s, out=s)
        s = _scan_chunks(log_products, s, backwards)
        before, now = _neighbours(s, backwards)[0], _neighbours(h[first], backwards)[1]
        now.addcmul_(_neighbours(a[first], backwards)[1], before)
    for previous, t in pairwise(order):
        h[t].addcmul_(a[t], h[previous])


def _scan_chunks(log_decay: Tensor, state: Tensor, backwards: bool) -> Tensor:
    """The same scan over the last dimension of both (b, d, N, c), with factors 2 ** log_decay."""
    count = log_decay.shape[3]
    steps = count if count < 32 else _chunk_length(count)
    if padding := -count % steps:
        log_decay, state = (F.pad(x, (0, padding)) for x in (log_decay, state))
    decay, log_decay, by_steps = (
        x.unflatten(3, (-1, steps)).mT for x in (log_decay.exp2(), log_decay, state)
    )
    _scan_(decay, _chunk_sums(log_decay), by_steps, backwards)
    return state[..., :count]


def _chunk_sums(x: Tensor, backwards: bool = False, delayed: bool = False) -> Tensor:
    """Sums (b, d, N, c) of x (b, d, N, T, c) over each chunk; where ``delayed``, of x_{l-1} for each l."""
    if not delayed:
        return _sum(x, 3)
    inside, last = (x[..., 1:, :], x[..., 0, :]) if backwards else (x[..., :-1, :], x[..., -1, :])
    sums = _sum(inside, 3)
    _neighbours(sums, backwards)[1].add_(_neighbours(last, backwards)[0])
    return sums


def _neighbours(x: Tensor, backwards: bool) -> tuple[Tensor, Tensor]:
    """x (..., n) but for what is scanned last, and for each of those what is scanned next."""
    return (x[..., 1:], x[..., :-1]) if backwards else (x[..., :-1], x[..., 1:])


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
        self.A = self.A.mT.contiguous().mT  # d innermost, as in the arrays of channels-last tiles
        self.log_decay_rate = self.A * LOG2_E  # for powers of two
        groups = math.lcm(*(x.shape[2] for x in (B, C) if x.dim() == 5))
        self.states = A.shape[2]
        self.tiling = _Tiling.of(u, self.states, groups)
        self.B, self.C = (self._by_steps(x) for x in (self.B, self.C))
        self.delta, self.decay, self.state = self.buffer(), self.state_buffer(), self.state_buffer()

    def buffer(self) -> Tensor:
        """Room for (b, d, 1, T, c)."""
        return self.tiling.buffer(self.A)

    def state_buffer(self) -> Tensor:
        """Room for (b, d, N, T, c)."""
        return self.tiling.buffer(self.A, self.states)

    def _by_steps(self, x: Tensor) -> Tensor:
        """B or C (b, K, G, N, L) as (b, K, G, N, T, c); the one that is (K, D, N) as (K, D, N, 1, 1)."""
        if x.dim() == 3:
            return _over_positions(x)
        return self.tiling.by_steps(x.flatten(0, 2)).unflatten(0, x.shape[:3])

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

    def of(self, x: Tensor) -> Tensor:
        """This tile of x (b, D, L)."""
        return x[self.images, self.channels]

    def load(self, x: Tensor) -> Tensor:
        """This tile of x (b, D, L) as (b, d, 1, T, c)."""
        return self.work.tiling.by_steps(self.of(x).to(self.work.A.dtype)).unsqueeze(2)

    def store(self, x: Tensor, out: Tensor) -> None:
        """Copy x (b, d, 1, T, c) to this tile of out (b, D, L)."""
        self.of(out).copy_(self.work.tiling.by_positions(x.squeeze(2)))

    def store_with_skip(self, x: Tensor, u: Tensor, out: Tensor) -> None:
        """Put x (b, d, 1, T, c) + D · u, if there is a D, in this tile of out; u and out (b, D, L)."""
        D = self.work.D
        if D is None:
            self.store(x, out)
        else:
            skip = D[:, self.channels].sum(0)[:, None]
            x, u, out = self.work.tiling.by_positions(x.squeeze(2)), self.of(u), self.of(out)
            if out.dtype == u.dtype == x.dtype:
                torch.addcmul(x, u, skip, out=out)
            else:
                out.copy_(torch.addcmul(x, u.to(x.dtype), skip))

    def rows(self, x: Tensor, k: int) -> Tensor:
        """Direction k of B or C, to be combined with (b, d, N, T, c)."""
        return x[k, self.channels] if x.dim() == 5 else x[self.images, k, self._group(x), None]

    def add_rows(self, product: Tensor, k: int, out: Tensor) -> None:
        """Sum product (b, d, N, T, c) into direction k of the gradient of B or C."""
        if out.dim() == 3:
            out[k, self.channels] += _sum(product, 0, 3, 4)
        else:
            out[self.images, k, self._group(out)] += self.work.tiling.by_positions(_sum(product, 1))

    def _group(self, x: Tensor) -> int:
        return self.channels.start * x.shape[2] // self.work.u_source.shape[1]

    def discretise(self, k: int, u: Tensor, slope: Tensor | None = None) -> None:
        """Fill the buffers with Δ, exp(Δ A) and Δ B u of direction k; in slope, put dΔ / d delta."""
        work = self.work
        bias = 0 if work.delta_bias is None else _over_positions(work.delta_bias[k, self.channels, None])
        step = torch.add(self.load(work.delta_source[:, k]), bias, out=work.delta)
        if work.delta_softplus:
            if slope is not None:
                torch.sigmoid(step, out=slope)
            _softplus_(step, work.decay[:, :, :1], work.state[:, :, :1])
        elif slope is not None:
            slope.fill_(1)
        torch.mul(step, _over_positions(self._log_decay_rate(k)), out=work.decay).exp2_()
        if work.tiling.padding:
            work.decay[..., -work.tiling.padding :, -1] = 0
        torch.mul(u, self.rows(work.B, k), out=work.state).mul_(step)

    def scan_(self, state: Tensor, k: int, backwards: bool, delayed: bool = False) -> None:
        """:func:`_scan_` of state with the decays of direction k."""
        sums = _chunk_sums(self.work.delta, backwards, delayed)
        _scan_(self.work.decay, sums * self._log_decay_rate(k)[..., None], state, backwards, delayed)

    def _log_decay_rate(self, k: int) -> Tensor:
        """(d, N) of direction k."""
        return self.work.log_decay_rate[k, self.channels]


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
    products = work.state_buffer()
    for tile in work.tiles():
        u_tile = tile.load(u)
        for k in range(delta.shape[1]):
            tile.discretise(k, u_tile)
            tile.scan_(work.state, k, backwards=k == 1)
            rows = tile.rows(work.C, k)
            if k == 0:
                total = _over_states(torch.mul(work.state, rows, out=products))
            elif work.states == 1:
                total.addcmul_(work.state, rows)
            else:
                total.add_(_over_states(work.state.mul_(rows)))
        tile.store_with_skip(total, u, y)
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
    dA, dB, dC, dD, dbias = sums = [
        None if x is None else torch.zeros_like(x, dtype=work.A.dtype) for x in (A, B, C, D, delta_bias)
    ]
    du, slope = work.buffer(), work.buffer()
    g, spare = work.state_buffer(), work.state_buffer()
    for tile in work.tiles():
        part = tile.channels
        u_tile, dy = tile.load(u), tile.load(grad)
        if D is not None:
            dD[:, part] += torch.mul(dy, u_tile, out=du).sum((0, 2, 3, 4))
        for k in range(delta.shape[1]):
            tile.discretise(k, u_tile, slope)
            decay, h, step = work.decay, work.state, work.delta
            torch.mul(dy, tile.rows(work.C, k), out=g)
            tile.scan_(g, k, backwards=k == 0, delayed=True)
            tile.scan_(h, k, backwards=k == 1)
            tile.add_rows(torch.mul(h, dy, out=spare), k, dC)
            kept = torch.mul(decay, g, out=spare)
            _multiply_by_previous_(kept, h, backwards=k == 1)  # g_t exp(Δ_t A) h_{t-1}
            dA[k, part] += _sum(torch.mul(kept, step, out=decay), 0, 3, 4)
            tile.add_rows(torch.mul(g, step, out=h).mul_(u_tile), k, dB)
            received = _over_states(g.mul_(tile.rows(work.B, k)))  # dL / d(Δ_t u_t)
            if k == 0:
                torch.mul(step, received, out=du)
            else:
                du.addcmul_(step, received)
            ddelta = _over_states(kept.mul_(_over_positions(work.A[k, part])))
            ddelta.addcmul_(u_tile, received).mul_(slope)
            if dbias is not None:
                dbias[k, part] += ddelta.sum((0, 2, 3, 4))
            tile.store(ddelta, ddelta_all[:, k])
        tile.store_with_skip(du, grad, du_all)
    given = [x for x in (A, B, C, D, delta_bias) if x is not None]
    sums = [x for x in sums if x is not None]
    return [du_all, ddelta_all, *(x.to(y.dtype) for x, y in zip(sums, given, strict=True))]


def _softplus_(x: Tensor, e: Tensor, w: Tensor) -> None:
    """F.softplus in place; e and w, laid out as x is, are overwritten.

    On CPUs without log1p, which took up to six times as long, on an AMD EPYC, until the file of PyTorch's
    library was read anew: log(1 + e) is log(w) + (e - (w - 1)) / w, where w is 1 + e rounded.
    """
    if x.device.type != 'cpu':
        torch.logaddexp(x, x.new_zeros(()), out=x)
        return
    torch.clamp_max(x, SOFTPLUS_IS_LINEAR, out=e).mul_(LOG2_E).exp2_()
    torch.add(e, 1, out=w)
    e.sub_(w.sub_(1)).div_(w.add_(1))
    torch.maximum(x, w.log_().add_(e), out=x)


def _over_positions(x: Tensor) -> Tensor:
    """x (d, N), to be combined with (b, d, N, T, c)."""
    return x[..., None, None]


def _over_states(x: Tensor) -> Tensor:
    """Sum x (b, d, N, T, c) over N, without a copy where N is 1; (b, d, 1, T, c)."""
    return x if x.shape[2] == 1 else _sum(x, 2).unsqueeze(2)


def _sum(x: Tensor, *dims: int) -> Tensor:
    """torch.sum, but laid out as x is, which is the faster by far where channels are last."""
    kept = x[tuple(0 if dim in dims else slice(None) for dim in range(x.dim()))]
    return torch.sum(x, dims, out=torch.empty_like(kept))


def _multiply_by_previous_(x: Tensor, h: Tensor, backwards: bool) -> None:
    """x_l *= h_{l-1} in place, both (b, d, N, T, c); zero where there is no position before."""
    before, now = (slice(1, None), slice(-1)) if backwards else (slice(-1), slice(1, None))
    x[..., now, :].mul_(h[..., before, :])
    last, first = (0, -1) if backwards else (-1, 0)
    x[..., first, now].mul_(h[..., last, before])
    x[..., first, first] = 0


def _setup_context(ctx: FunctionCtx, inputs: tuple, output: Tensor) -> None:
    *tensors, ctx.delta_softplus = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
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
