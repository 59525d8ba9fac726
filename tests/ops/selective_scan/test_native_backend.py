"""What only the compiled CPU backend promises: its operators, its limits, and life without it."""

from pathlib import Path

import pytest
import torch
from scan_cases import Case, backend_or_skip, check_against_reference

from mmmobilemamba.errors import UserError
from mmmobilemamba.ops import available_backends, check_backend, selective_scan
from mmmobilemamba.ops import native as library
from mmmobilemamba.ops.selective_scan import interface, native_backend


@pytest.fixture
def native() -> None:
    backend_or_skip('native')


def arguments(case: Case) -> list[torch.Tensor | None]:
    """In the form that the operator takes."""
    k, n = case.directions, case.states
    u, delta, A, B, C, D, bias = (None if x is None else x.detach() for x in case.tensors())
    B, C = (x.reshape(case.batch, k, 1, n, -1).float().contiguous() for x in (B, C))
    D, bias = (None if x is None else x.float().view(k, -1) for x in (D, bias))
    delta = delta if k == 2 else delta[:, None]
    return [u, delta, A.float().view(k, -1, n), B, C, D, bias]


@pytest.mark.parametrize(
    ('directions', 'vectors', 'dtype'),
    [(1, True, torch.float32), (2, True, torch.bfloat16), (2, False, torch.float32)],
)
def test_operators(native, directions, vectors, dtype):
    from torch.library import opcheck

    case = Case(
        channels=40, length=35, directions=directions, vectors=vectors, dtype=dtype, layout='channels_last'
    )
    given = arguments(case)
    needing = [None if x is None else x.requires_grad_() for x in given]
    opcheck(torch.ops.mmmobilemamba.native_scan.default, (*needing, True))
    plain = [None if x is None else x.detach() for x in given]
    y, states = torch.ops.mmmobilemamba.native_scan(*plain, True)
    opcheck(
        torch.ops.mmmobilemamba.native_scan_backward.default, (torch.randn(y.shape), states, *plain, True)
    )


@pytest.mark.parametrize(
    ('change', 'text'),
    [
        (dict(u=torch.zeros(2, 6, 13, dtype=torch.float64)), 'float32'),
        (dict(A=torch.zeros(1, 1, 6).transpose(1, 2)[:, ::2]), 'contiguous float32|shapes'),
        (dict(B=torch.zeros(2, 1, 1, 1, 12)), 'shapes do not fit'),
        (dict(D=torch.zeros(1, 5)), r'must be \(K, D\)'),
    ],
)
def test_operator_refuses_what_it_cannot_read(native, change, text):
    given = dict(zip(('u', 'delta', 'A', 'B', 'C', 'D', 'bias'), arguments(Case()), strict=True))
    with pytest.raises(RuntimeError, match=text):
        torch.ops.mmmobilemamba.native_scan(*{**given, **change}.values(), True)


@pytest.mark.parametrize('channels', [7, 16, 40])
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last', 'strided'])
@pytest.mark.kernels
def test_edges_of_tiles(native, channels, layout):
    """Lengths around the 8 positions that are transposed at once and the 32 of a tile."""
    for length in (7, 8, 9, 31, 32, 33, 40, 63, 65):
        case = Case(batch=1, channels=channels, length=length, layout=layout, directions=2)
        check_against_reference(case, 'native', 5e-6)


@pytest.mark.kernels
def test_several_threads_give_the_same(native, set_num_threads):
    case = Case(batch=2, channels=100, length=70, states=2, directions=2)
    tensors = case.tensors()
    results = []
    for count in (1, 3):
        set_num_threads(count)
        results.append(case.gradients(tensors, 'native'))
    (y, grads), (again, grads_again) = results
    assert torch.equal(y, again)
    assert all(torch.equal(grads[name], grads_again[name]) for name in grads)


def test_memory_does_not_grow_with_states(native):
    """Between the passes one state in 32 is kept, not all L of them."""
    case = Case(batch=1, channels=8, length=640, states=16)
    _, states = torch.ops.mmmobilemamba.native_scan(*arguments(case), True)
    assert states.numel() == 8 * 16 * 640 // 32


def test_limits():
    assert 'CPU only, not on cuda' in native_backend._limits('cuda', torch.float32, 1)
    assert 'float32, not in float64' in native_backend._limits('cpu', torch.float64, 1)
    assert native_backend._limits('cpu', torch.float32, 1000) is None


def test_float64_by_name_is_refused(native):
    tensors = Case(dtype=torch.float64).tensors()
    with pytest.raises(UserError, match="'native' cannot run these tensors.*float64.*'auto'"):
        Case().run(tensors, 'native')


def test_static_rows_are_said_once_to_run_on_torch(native, said):
    native_backend._say_where_static_rows_go.cache_clear()
    tensors = Case(B='static', C='static').tensors()
    for _ in range(2):
        Case().run(tensors, 'native')
    assert len([line for line in said if 'has no kernel for B or C of shape (D, N)' in line]) == 1


@pytest.fixture
def not_built(monkeypatch):
    """As installed without a compiler."""
    glob = Path.glob
    monkeypatch.setattr(
        Path, 'glob', lambda self, pattern: [] if pattern.startswith('_native') else glob(self, pattern)
    )
    monkeypatch.setattr(interface, '_chosen', {})
    monkeypatch.setattr(interface, '_announced', set())
    for function in (library.missing, native_backend._missing):
        function.cache_clear()
    yield
    for function in (library.missing, native_backend._missing):
        function.cache_clear()


def test_without_the_kernel_auto_is_torch_and_says_so(not_built, said):
    assert available_backends()[:1] == ('torch',)
    tensors = [x.detach() for x in Case().tensors()]
    y = Case().run(tensors, 'auto')
    Case().run(tensors, 'auto')
    assert torch.equal(y, Case().run(tensors, 'torch'))
    assert len(said) == 1
    assert "Selective scan on cpu: backend 'torch'" in said[0]
    assert "'native' would be faster but cannot be used: its kernel was not built" in said[0]
    assert 'pip install --no-build-isolation' in said[0]


def test_without_the_kernel_its_name_raises(not_built):
    with pytest.raises(UserError, match='was not built.*pip install --no-build-isolation'):
        check_backend('native')
    tensors = Case().tensors()
    with pytest.raises(UserError, match='was not built'):
        selective_scan(*tensors, backend='native')


@pytest.mark.parametrize(
    'release, reason',
    [
        ('2_3', r'built for another torch \(_native_torch2_3\), this is '),
        ('_'.join(torch.__version__.split('.')[:2]), r'does not load \('),
    ],
)
def test_kernel_of_another_torch(not_built, monkeypatch, tmp_path, release, reason):
    broken = tmp_path / f'_native_torch{release}.so'
    broken.write_bytes(b'no library')
    monkeypatch.setattr(Path, 'glob', lambda self, pattern: [broken])
    with pytest.raises(UserError, match=reason + '.*pip install --no-build-isolation'):
        check_backend('native')


def test_kernel_of_an_older_version(built, monkeypatch):
    monkeypatch.setattr(library, 'NEWEST', 'ClassOfTheFuture')
    assert library.missing.__wrapped__() == 'its kernel was built for an older version of mmmobilemamba'
