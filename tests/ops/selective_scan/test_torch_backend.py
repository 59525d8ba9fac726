"""What only the vectorised PyTorch backend promises: derivatives in float64, and few steps."""

import math

import pytest
import torch
from scan_cases import Case, check_against_reference
from torch.utils._python_dispatch import TorchDispatchMode

from mmmobilemamba.ops.selective_scan import torch_backend

needs_custom_ops = pytest.mark.skipif(not hasattr(torch.library, 'opcheck'), reason='needs torch 2.4')


@pytest.mark.parametrize('directions', [1, 2])
@pytest.mark.parametrize('softplus', [False, True])
def test_gradcheck(directions, softplus):
    case = Case(
        batch=1, channels=2, states=2, length=7, directions=directions, softplus=softplus, dtype=torch.float64
    )
    assert torch.autograd.gradcheck(lambda *x: case.run(list(x), 'torch'), case.tensors())


@pytest.mark.parametrize('B', ['static', 2])
def test_gradcheck_of_forms(B):
    case = Case(batch=1, channels=4, length=13, B=B, C='static', dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda *x: case.run(list(x), 'torch'), case.tensors())


@pytest.mark.parametrize('directions', [1, 2])
def test_gradgradcheck(directions):
    case = Case(batch=1, channels=1, states=2, length=3, directions=directions, dtype=torch.float64)
    assert torch.autograd.gradgradcheck(lambda *x: case.run(list(x), 'torch'), case.tensors())


@pytest.mark.parametrize('directions', [1, 2])
def test_float64(directions):
    check_against_reference(Case(length=97, directions=directions, dtype=torch.float64), 'torch', 1e-11)


def test_long_memory_is_kept_exactly():
    """Of decays so near 1 that float32 hardly tells them from it, over many positions."""
    case = Case(batch=1, channels=8, length=4000, softplus=False, vectors=False)
    u, delta, A, B, C, *_ = case.tensors()
    with torch.no_grad():
        single = [u, delta + 0.1, 1e-5 * (A - 0.1), B, C, None, None]
        exact = case.run([None if x is None else x.double() for x in single], 'reference')
        error, step_by_step = ((case.run(single, k) - exact).abs().max() for k in ('torch', 'reference'))
    assert error <= 1e-5 * exact.std()
    assert error <= 0.2 * step_by_step


@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_several_tiles(monkeypatch, batch, layout):
    """Channels and pictures that do not fit into one tile, as large inputs do not."""
    monkeypatch.setattr(torch_backend, 'CPU_TILE', 100)
    for groups in (1, 3):
        case = Case(batch=batch, channels=12, length=30, B=groups, C=groups, layout=layout)
        check_against_reference(case, 'torch', 5e-6)


class CountOperators(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize('length', [100, 1009, 4200])
def test_steps_grow_slower_than_the_square_root(length):
    tensors = [x.detach() for x in Case(batch=1, channels=1, length=length).tensors()]
    given = [x[None] if x.dim() == 2 else x[:, None, None] for x in tensors[2:5]]
    vectors = [x[None] for x in tensors[5:]]
    with CountOperators() as counted:
        torch_backend._forward(tensors[0], tensors[1][:, None], *given, *vectors, True)
    assert counted.count < 200 + 8 * length**0.5


@needs_custom_ops
@pytest.mark.parametrize(('directions', 'vectors'), [(1, False), (2, True)])
def test_operators(directions, vectors):
    from torch.library import opcheck

    case = Case(directions=directions, vectors=vectors, layout='channels_last')
    u, delta, A, B, C, D, bias = case.tensors()
    if directions == 1:
        delta, A, B, C = delta[:, None], A[None], B[:, None, None], C[:, None, None]
        D, bias = (None if x is None else x[None] for x in (D, bias))
    else:
        A, B, C = A.unflatten(0, (2, -1)), B[:, :, None], C[:, :, None]
        D, bias = (None if x is None else x.unflatten(0, (2, -1)) for x in (D, bias))
    arguments = [None if x is None else x.detach().requires_grad_() for x in (u, delta, A, B, C, D, bias)]
    opcheck(torch_backend.scan, (*arguments, True))
    plain = [None if x is None else x.detach() for x in arguments]
    opcheck(torch_backend._backward_op, (torch.randn(u.shape), *plain, True))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_softplus(dtype):
    x = torch.cat([torch.linspace(-80, 80, 1001), torch.tensor([math.inf, -math.inf, math.nan, 0.0, 1e30])])
    y = x.to(dtype, copy=True)
    torch_backend._softplus_(y, torch.empty_like(y), torch.empty_like(y))
    expected = torch.logaddexp(x.double(), torch.zeros((), dtype=torch.float64)).to(dtype)
    # The rounding of the exponent costs this much far below zero, where the results are next to nothing.
    torch.testing.assert_close(y, expected, rtol=64 * torch.finfo(dtype).eps, atol=0, equal_nan=True)
