"""The calls that the CUDA backend makes, against a stand-in that accepts what the real kernel accepts.

The stand-in refuses what ``selective_scan_cuda`` of mamba-ssm 1.x and 2.x refuses (its csrc checks types,
shapes and strides), and what it would compute wrongly or crash on. It computes with the reference.
"""

import sys
from types import ModuleType

import pytest
import torch
from scan_cases import NAMES, Case, assert_near, doubles

from mmmobilemamba.errors import UserError
from mmmobilemamba.ops import check_backend
from mmmobilemamba.ops.selective_scan import mamba_ssm_backend, reference

PACKAGES = ('mamba_ssm', 'mamba_ssm.ops', 'mamba_ssm.ops.selective_scan_interface')


class Kernel:
    """Stand-in for ``selective_scan_fn`` and the extension below it; counts its calls."""

    def __init__(self) -> None:
        self.calls = []

    def __call__(self, u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False,
                 return_last_state=False):  # fmt: skip
        assert z is None and return_last_state is False
        assert isinstance(delta_softplus, bool)
        assert not torch.is_autocast_enabled('cpu')
        assert u.dtype in (torch.float32, torch.float16, torch.bfloat16)
        assert A.dtype == torch.float32
        batch, channels, length = u.shape
        groups = B.shape[1] if B.dim() == 4 else 1
        assert delta.dtype == u.dtype and delta.shape == u.shape
        assert A.dim() == 2 and A.shape[0] == channels and A.shape[1] <= 256
        for x in (B, C):
            if x.dim() == 4:
                assert x.dtype == u.dtype and x.shape == (batch, groups, A.shape[1], length)
            else:
                assert x.dtype == torch.float32 and x.shape == A.shape
        for x in (D, delta_bias):
            assert x is None or (x.dtype == torch.float32 and x.shape == (channels,) and x.is_contiguous())
        for x in (u, delta, *(x for x in (B, C) if x.dim() == 4)):
            assert x.stride(-1) == 1 or length == 1
            # Rows of 128 positions and more are read 16 bytes at a time.
            bytes_ = [s * x.element_size() for s in (*x.stride()[:-1], x.storage_offset())]
            assert length % 128 or all(s % 16 == 0 for s in bytes_)
        self.calls.append((u, delta, A, B, C, D, delta_bias))
        rows = [x[None] if x.dim() == 2 else x[:, None] for x in (B, C)]
        vectors = [None if x is None else x[None] for x in (D, delta_bias)]
        return reference.scan(u, delta[:, None], A[None], *rows, *vectors, delta_softplus)


@pytest.fixture
def kernel(monkeypatch) -> Kernel:
    kernel = Kernel()
    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[PACKAGES[-1]].selective_scan_fn = kernel
    # The tensors of these tests are on the CPU.
    backend = mamba_ssm_backend.Backend('mamba_ssm', rank=-1, scan=mamba_ssm_backend._scan)
    monkeypatch.setitem(mamba_ssm_backend.register.__globals__['_backends'], 'mamba_ssm', backend)
    monkeypatch.setitem(mamba_ssm_backend.register.__globals__, '_chosen', {})
    return kernel


def check(case: Case, tolerance: float = 5e-6) -> None:
    tensors = case.tensors()
    y, grads = case.gradients(tensors, 'mamba_ssm')
    expected, expected_grads = case.gradients(doubles(tensors), 'reference')
    assert y.dtype == case.dtype
    assert_near(y, expected, tolerance, 'output')
    for name, x in zip(NAMES, tensors, strict=True):
        if x is not None:
            assert grads[name].dtype == x.dtype
            assert_near(grads[name], expected_grads[name], tolerance, f'gradient of {name}')


@pytest.mark.parametrize(
    'layout', ['contiguous', 'channels_last', 'strided', 'sliced', 'offset', 'batch_inside']
)
@pytest.mark.parametrize('directions', [1, 2])
@pytest.mark.parametrize('length', [1, 13, 128])
def test_layouts(kernel, layout, directions, length):
    check(Case(layout=layout, directions=directions, length=length, states=2))
    assert len(kernel.calls) == directions


@pytest.mark.parametrize('B', ['static', 'shared', 1, 2, 3])
@pytest.mark.parametrize('C', ['static', 'shared', 1, 2, 3])
def test_forms_of_B_and_C(kernel, B, C):
    check(Case(B=B, C=C, states=2))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('directions', [1, 2])
def test_half_precision_goes_in_as_it_is(kernel, dtype, directions):
    check(Case(dtype=dtype, directions=directions), tolerance=2 * torch.finfo(dtype).eps)
    assert all(call[0].dtype == dtype for call in kernel.calls)


@pytest.mark.parametrize('directions', [1, 2])
def test_mixed_types_are_widened(kernel, directions):
    case = Case(directions=directions)
    tensors = case.tensors()
    tensors[0] = tensors[0].detach().half().requires_grad_()
    tensors[2] = tensors[2].detach().bfloat16().requires_grad_()
    y, grads = case.gradients(tensors, 'mamba_ssm')
    expected, expected_grads = case.gradients(doubles(tensors), 'reference')
    assert y.dtype == torch.float16
    assert_near(y, expected, 1e-3, 'output')
    for name, x in zip(NAMES, tensors, strict=True):
        assert grads[name].dtype == x.dtype
        assert_near(grads[name], expected_grads[name], 1e-2, f'gradient of {name}')


@pytest.mark.parametrize('vectors', [False, True])
@pytest.mark.parametrize('softplus', [False, True])
def test_options(kernel, vectors, softplus):
    check(Case(vectors=vectors, softplus=softplus, directions=2))


def test_autocast_does_not_reach_the_kernel(kernel):
    case = Case(directions=2)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        check(case)


def test_nothing_is_copied_that_fits(kernel):
    """Contiguous tensors, and slices of channels, of one direction are handed over as they are."""
    for layout in ('contiguous', 'sliced'):
        tensors = Case(batch=1, length=16, B=1, C=1, layout=layout).tensors()
        Case().run(tensors, 'mamba_ssm')
        for given, received in zip(tensors, kernel.calls[-1], strict=True):
            assert given.data_ptr() == received.data_ptr()


def test_direction_0_is_not_copied_either(kernel):
    tensors = Case(batch=1, length=16, directions=2).tensors()
    Case(directions=2).run(tensors, 'mamba_ssm')
    assert kernel.calls[0][0].data_ptr() == tensors[0].data_ptr()
    assert kernel.calls[0][1].data_ptr() == tensors[1].data_ptr()


def test_graph_of_the_gradient_is_refused(kernel):
    case = Case()
    with pytest.raises(UserError, match="cannot be differentiated twice.*'torch'"):
        case.gradients(case.tensors(), 'mamba_ssm', create_graph=True)


@pytest.mark.parametrize(
    ('device', 'dtype', 'states', 'text'),
    [
        ('cpu', torch.float32, 1, 'runs on CUDA only, not on cpu'),
        ('cuda', torch.float64, 1, 'computes in float32'),
        ('cuda', torch.float32, 257, 'at most 256 states per channel, these have 257'),
    ],
)
def test_limits(device, dtype, states, text):
    assert text in mamba_ssm_backend._limits(device, dtype, states)


def test_no_limit_within_limits():
    assert mamba_ssm_backend._limits('cuda', torch.float32, 256) is None


@pytest.fixture
def machine(monkeypatch):
    """A function that pretends that CUDA and the package are there."""
    mamba_ssm_backend._import_error.cache_clear()

    def pretend(cuda: bool, package: bool) -> None:
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: cuda)
        monkeypatch.setattr(mamba_ssm_backend, 'find_spec', lambda name: package or None)

    yield pretend
    mamba_ssm_backend._import_error.cache_clear()


def test_what_is_missing_is_said(machine, monkeypatch):
    def broken():
        raise ImportError('selective_scan_cuda.so: undefined symbol')

    machine(cuda=False, package=False)
    assert mamba_ssm_backend._missing() == (
        'torch finds no CUDA device and the package mamba-ssm is not installed'
    )
    machine(cuda=True, package=False)
    assert mamba_ssm_backend._missing() == 'the package mamba-ssm is not installed'
    machine(cuda=False, package=True)
    assert mamba_ssm_backend._missing() == 'torch finds no CUDA device'
    machine(cuda=True, package=True)
    monkeypatch.setattr(mamba_ssm_backend, '_kernel', broken)
    assert 'ImportError: selective_scan_cuda.so: undefined symbol' in mamba_ssm_backend._missing()


def test_complete_installation(machine, kernel):
    machine(cuda=True, package=True)
    assert mamba_ssm_backend._missing() is None


def test_asking_for_it_in_vain_tells_the_command(machine):
    machine(cuda=False, package=False)
    with pytest.raises(UserError, match=r'pip install --no-build-isolation mamba-ssm'):
        check_backend('mamba_ssm')
