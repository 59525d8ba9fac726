"""The public functions of the selective scan: they check arguments and hand them to a backend.

A backend is one file that calls :func:`register` with a :class:`Backend`; the symbols used in shapes are
explained in :mod:`.reference`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from mmengine.logging import print_log
from torch import Tensor

from ...compat import has_tangent, in_transform, is_compiling
from ...errors import UserError

ScanFunction = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, bool], Tensor]


@dataclass(frozen=True)
class Backend:
    """One implementation of the scan.

    Attributes:
        name: what users pass as ``backend``.
        rank: 'auto' takes the available backend of the highest rank that suits the tensors.
        scan: ``scan(u, delta, A, B, C, D, delta_bias, delta_softplus)``, the sum of K = 1 or 2
            directions, the second one running backwards. u (b, D, L); delta (b, K, D, L); A (K, D, N);
            B, C each (K, D, N) or (b, K, G, N, L); D, delta_bias (K, D) or None; any strides and any
            mixture of floating-point types. Returns (b, D, L) in the type of u, computed in
            :func:`compute_dtype` or better, differentiable in every tensor.
        limits: ``limits(device_type, dtype, states)`` says why such tensors (``dtype`` is the
            :func:`compute_dtype`, ``states`` is N) are beyond this backend, or returns None.
        missing: says what keeps the backend from being used on this machine, or returns None.
        install: what to do about ``missing``.
    """

    name: str
    rank: int
    scan: ScanFunction
    limits: Callable[[str, torch.dtype, int], str | None] = lambda device, dtype, states: None
    missing: Callable[[], str | None] = lambda: None
    install: str = ''


_backends: dict[str, Backend] = {}
_chosen: dict[tuple[str, str, torch.dtype, int], str] = {}
_announced: set[str] = set()


def register(backend: Backend) -> None:
    """Add a backend to the choice."""
    _backends[backend.name] = backend
    _chosen.clear()


def available_backends() -> tuple[str, ...]:
    """Names of the backends that this machine can run, the one 'auto' prefers first."""
    return tuple(b.name for b in _by_rank() if b.missing() is None)


def check_backend(backend: str) -> None:
    """Raise :class:`UserError` unless ``backend`` is 'auto' or a backend that this machine can run."""
    if backend == 'auto':
        return
    if backend not in _backends:
        names = ', '.join(repr(b.name) for b in _by_rank())
        raise UserError(
            f'Unknown selective-scan backend {backend!r}. Allowed are {names}, and '
            "'auto', which picks the fastest that works."
        )
    reason = _backends[backend].missing()
    if reason is not None:
        raise UserError(
            f'The selective-scan backend {backend!r} was asked for but cannot be used: {reason}. '
            f"To install it: {_backends[backend].install}. Or choose backend 'auto' or one of "
            f'{", ".join(map(repr, available_backends()))}.'
        )


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    backend: str = 'auto',
) -> Tensor:
    """Selective scan of Mamba (arXiv 2312.00752, Alg. 2), with Δ = ``delta`` as in the official code.

    ``h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t``, ``y_t = C_t · h_t + D u_t`` with h = 0 before the first
    position; with ``delta_softplus``, Δ = softplus(delta + delta_bias), else delta + delta_bias.
    Shapes and meaning are those of ``mamba_ssm.ops.selective_scan_interface.selective_scan_fn``.

    Args:
        u: (batch, D, L), floating point, any strides. Transposed views of (batch, L, D) memory are as
            fast as contiguous tensors or faster.
        delta: (batch, D, L).
        A: (D, N), real; negative entries decay.
        B: (D, N) if it is the same at all positions, else (batch, N, L), or (batch, G, N, L) for G
            groups of D / G consecutive channels each.
        C: as B; each may have its own form.
        D: (D,), weight of u in the output.
        delta_bias: (D,), added to delta.
        delta_softplus: whether to make Δ positive with softplus.
        backend: 'auto' or one of :func:`available_backends`.

    Returns:
        (batch, D, L) in the data type of u, differentiable in every tensor. All states are kept in
        float32 at least, also under autocast.

    Raises:
        TypeError: a data type is not floating point.
        ValueError: shapes or devices do not fit together.
        UserError: the backend is unknown, not installed or cannot take these tensors.
    """
    _check_types(u=u, delta=delta, A=A, B=B, C=C, D=D, delta_bias=delta_bias)
    _require(u.dim() == 3, 'u', u, '(batch, D, L) with L of at least 1')
    batch, channels, length = u.shape
    _require(length > 0, 'u', u, '(batch, D, L) with L of at least 1')
    _require(delta.shape == u.shape, 'delta', delta, '(batch, D, L) as u has it', u)
    _require(A.dim() == 2 and A.shape[0] == channels, 'A', A, '(D, N)', u)
    _check_vectors(channels, u, D=D, delta_bias=delta_bias)
    return _backend_for(backend, u, delta, A, B, C, D, delta_bias).scan(
        u,
        delta[:, None],
        A[None],
        _with_groups('B', B, u, A),
        _with_groups('C', C, u, A),
        None if D is None else D[None],
        None if delta_bias is None else delta_bias[None],
        delta_softplus,
    )


def bidirectional_selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    backend: str = 'auto',
) -> Tensor:
    """Sum of two selective scans over the same u: one runs forwards, one backwards, nothing is flipped.

    Direction 0 scans the positions 0 ... L-1, direction 1 scans L-1 ... 0; at each position their
    outputs are added. All tensors are in the order of the positions of u.

    Args:
        u: (batch, D, L), floating point, any strides; see :func:`selective_scan`.
        delta: (batch, 2, D, L), one step size per direction.
        A: (2·D, N), real; the first D rows belong to direction 0.
        B: (batch, 2, N, L).
        C: (batch, 2, N, L).
        D: (2·D,).
        delta_bias: (2·D,).
        delta_softplus: whether to make Δ positive with softplus.
        backend: 'auto' or one of :func:`available_backends`.

    Returns:
        (batch, D, L) in the data type of u, differentiable in every tensor. All states and the sum are
        kept in float32 at least, also under autocast; only 'mamba_ssm' rounds the output of each
        direction to the type of its inputs before the sum.

    Raises:
        TypeError: a data type is not floating point.
        ValueError: shapes or devices do not fit together.
        UserError: the backend is unknown, not installed or cannot take these tensors.
    """
    _check_types(u=u, delta=delta, A=A, B=B, C=C, D=D, delta_bias=delta_bias)
    _require(u.dim() == 3, 'u', u, '(batch, D, L) with L of at least 1')
    batch, channels, length = u.shape
    _require(length > 0, 'u', u, '(batch, D, L) with L of at least 1')
    _require(delta.shape == (batch, 2, channels, length), 'delta', delta, '(batch, 2, D, L)', u)
    _require(A.dim() == 2 and A.shape[0] == 2 * channels, 'A', A, '(2·D, N)', u)
    _check_vectors(2 * channels, u, D=D, delta_bias=delta_bias)
    for name, x in (('B', B), ('C', C)):
        _require(x.shape == (batch, 2, A.shape[1], length), name, x, '(batch, 2, N, L)', u, A)
    per_direction = (2, channels)
    return _backend_for(backend, u, delta, A, B, C, D, delta_bias).scan(
        u,
        delta,
        A.unflatten(0, per_direction),
        B[:, :, None],
        C[:, :, None],
        None if D is None else D.unflatten(0, per_direction),
        None if delta_bias is None else delta_bias.unflatten(0, per_direction),
        delta_softplus,
    )


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The type a scan over these tensors is computed in: float64 if any of them is, else float32."""
    double = any(x is not None and x.dtype == torch.float64 for x in tensors)
    return torch.float64 if double else torch.float32


def _by_rank() -> list[Backend]:
    return sorted(_backends.values(), key=lambda b: -b.rank)


def _backend_for(backend: str, u: Tensor, *others: Tensor | None) -> Backend:
    differentiable = backend == 'reference' or is_compiling()
    if not differentiable and (in_transform() or any(x is not None and has_tangent(x) for x in (u, *others))):
        raise UserError(
            'Forward-mode derivatives and transforms of torch.func (grad, jvp, vmap, ...) can be taken of '
            f"the selective-scan backend 'reference' only, not of {backend!r}. Choose that one "
            "(scan_backend='reference' of the backbone), or torch.autograd."
        )
    dtype = compute_dtype(u, *others)
    return _backends[choose_backend(backend, u.device.type, dtype, others[1].shape[1])]


# Compiled graphs take the choice as a constant, so that neither imports nor logging break them.
@torch.compiler.assume_constant_result
def choose_backend(backend: str, device_type: str, dtype: torch.dtype, states: int) -> str:
    """Name of the backend to use for N = ``states``; what 'auto' comes to is said once in the log.

    Raises:
        UserError: the backend is unknown, not installed or cannot take such tensors.
    """
    key = (backend, device_type, dtype, states)
    if key not in _chosen:
        if backend == 'auto':
            _chosen[key] = _fastest(device_type, dtype, states)
        else:
            check_backend(backend)
            reason = _backends[backend].limits(device_type, dtype, states)
            if reason is not None:
                raise UserError(
                    f'The selective-scan backend {backend!r} cannot run these tensors: {reason}. '
                    "Choose backend 'auto', which picks one that can."
                )
            _chosen[key] = backend
    return _chosen[key]


def _fastest(device_type: str, dtype: torch.dtype, states: int) -> str:
    better = []
    for backend in _by_rank():
        if backend.limits(device_type, dtype, states) is not None:
            continue
        reason = backend.missing()
        if reason is None:
            break
        better.append(
            f'{backend.name!r} would be faster but cannot be used: {reason}. To install it: {backend.install}'
        )
    line = '; '.join([f'Selective scan on {device_type}: backend {backend.name!r}', *better])
    if line not in _announced:
        _announced.add(line)
        print_log(line + '.', logger='current')
    return backend.name


def _check_types(**tensors: Tensor | None) -> None:
    device = getattr(tensors['u'], 'device', None)
    for name, x in tensors.items():
        if x is None:
            continue
        if not isinstance(x, Tensor):
            raise TypeError(f'selective scan: {name} is a {type(x).__name__}; allowed are tensors.')
        if not x.is_floating_point():
            raise TypeError(
                f'selective scan: {name} has data type {x.dtype}. Allowed are real floating-point '
                'types (float16, bfloat16, float32, float64); convert it first.'
            )
        if x.device != device:
            raise ValueError(
                f'selective scan: {name} is on {x.device}, but u is on {device}. '
                'All tensors must be on one device; move them there first.'
            )


def _check_vectors(size: int, u: Tensor, **vectors: Tensor | None) -> None:
    for name, x in vectors.items():
        if x is not None:
            _require(x.shape == (size,), name, x, f'({size},)', u)


def _require(fits: bool, name: str, x: Tensor, allowed: str, *context: Tensor) -> None:
    if fits:
        return
    beside = ''.join(
        f', beside {label} of shape {tuple(c.shape)}' for label, c in zip('uA', context, strict=False)
    )
    raise ValueError(
        f'selective scan: {name} has shape {tuple(x.shape)}{beside}; expected is {allowed}. '
        'See the docstring of the function for the shapes of all arguments.'
    )


def _with_groups(name: str, x: Tensor, u: Tensor, A: Tensor) -> Tensor:
    """B or C in any of its three forms as (1, D, N) or (batch, 1, G, N, L)."""
    batch, channels, length = u.shape
    states = A.shape[1]
    if x.shape == (channels, states):
        return x[None]
    grouped = x[:, None] if x.dim() == 3 else x
    _require(
        grouped.dim() == 4
        and grouped.shape[0] == batch
        and grouped.shape[1] > 0
        and channels % grouped.shape[1] == 0
        and grouped.shape[2:] == (states, length),
        name,
        x,
        '(D, N), (batch, N, L) or (batch, G, N, L) where G divides D',
        u,
        A,
    )
    return grouped[:, None]
