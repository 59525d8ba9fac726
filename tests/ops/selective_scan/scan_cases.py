"""Inputs for tests of the selective scan, and the comparison with the reference in float64."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mmmobilemamba.ops import bidirectional_selective_scan, selective_scan
from mmmobilemamba.ops.selective_scan import interface

NAMES = ('u', 'delta', 'A', 'B', 'C', 'D', 'delta_bias')


def backend_or_skip(name: str) -> str:
    reason = interface._backends[name].missing()
    if reason is not None:
        pytest.skip(f'backend {name!r}: {reason}')
    return name


@dataclass(frozen=True)
class Case:
    """One call of a scan function; ``B`` and ``C`` are 'static', 'shared' or a number of groups."""

    batch: int = 2
    channels: int = 6
    states: int = 1
    length: int = 13
    B: str | int = 'shared'
    C: str | int = 'shared'
    directions: int = 1
    vectors: bool = True
    softplus: bool = True
    layout: str = 'contiguous'
    dtype: torch.dtype = torch.float32
    seed: int = 0

    def tensors(self) -> list[Tensor | None]:
        """Leaves that need gradients, in the order of NAMES."""
        generator = torch.Generator().manual_seed(self.seed)
        b, d, n, length, k = self.batch, self.channels, self.states, self.length, self.directions

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        def rows(form: str | int) -> Tensor:
            if k == 2:
                return normal(b, 2, n, length)
            if form == 'static':
                return normal(d, n)
            return normal(b, n, length) if form == 'shared' else normal(b, form, n, length)

        delta = normal(b, 2, d, length) if k == 2 else normal(b, d, length)
        if not self.softplus:
            delta = delta.abs()
        tensors = [normal(b, d, length), delta, -normal(k * d, n).exp(), rows(self.B), rows(self.C)]
        # Without softplus a negative bias could make Δ negative, and the states explode.
        vectors = [normal(k * d), normal(k * d).abs()] if self.vectors else [None, None]
        cast = [None if x is None else x.to(self.dtype) for x in (*tensors, *vectors)]
        return [None if x is None else arrange(x, self.layout).requires_grad_() for x in cast]

    def run(self, tensors: list[Tensor | None], backend: str) -> Tensor:
        scan = bidirectional_selective_scan if self.directions == 2 else selective_scan
        return scan(*tensors, delta_softplus=self.softplus, backend=backend)

    def gradients(
        self, tensors: list[Tensor | None], backend: str, **kwargs
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The output, and the gradients of the sum of squares of the output by name."""
        y = self.run(tensors, backend)
        given = [(name, x) for name, x in zip(NAMES, tensors, strict=True) if x is not None]
        grads = torch.autograd.grad(y.double().square().sum(), [x for _, x in given], **kwargs)
        return y, {name: g for (name, _), g in zip(given, grads, strict=True)}


def arrange(x: Tensor, layout: str) -> Tensor:
    """The same values as a leaf with other strides."""
    if x.dim() < 3 or layout == 'contiguous':
        return x
    if layout == 'channels_last':
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if layout == 'strided':
        room = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 3), float('nan'))
        view = room[..., 1 : 1 + 2 * x.shape[-1] : 2]
    elif layout == 'sliced':
        room = x.new_full((x.shape[0], x.shape[1] + 2, *x.shape[2:]), float('nan'))
        view = room[:, 1:-1]
    elif layout == 'offset':
        view = x.new_empty(x.numel() + 1)[1:].view(x.shape)
    else:
        assert layout == 'batch_inside'
        room = torch.empty_like(x.movedim(0, -1).contiguous())
        view = room.movedim(-1, 0)
    view.copy_(x)
    return view


def doubles(tensors: list[Tensor | None]) -> list[Tensor | None]:
    return [None if x is None else x.detach().double().requires_grad_() for x in tensors]


def assert_near(actual: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    """The largest error is at most ``tolerance`` times the largest value."""
    assert actual.shape == expected.shape, what
    assert actual.isfinite().all(), f'{what} is not finite'
    error = (actual.double() - expected).abs().max()
    scale = expected.abs().max().clamp_min(1e-30)
    assert error <= tolerance * scale, f'{what}: error {error:.2e} at scale {scale:.2e}'


def check_against_reference(case: Case, backend: str, tolerance: float) -> None:
    """Value and every gradient against the reference in float64, types and shapes included."""
    tensors = case.tensors()
    y, grads = case.gradients(tensors, backend)
    expected, expected_grads = case.gradients(doubles(tensors), 'reference')
    assert y.dtype == case.dtype
    assert_near(y, expected, tolerance, 'output')
    for name, x in zip(NAMES, tensors, strict=True):
        if x is not None:
            assert grads[name].dtype == x.dtype
            assert_near(grads[name], expected_grads[name], tolerance, f'gradient of {name}')
