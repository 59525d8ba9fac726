"""Every backend that this machine can run against the reference in float64."""

import threading

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scan_cases import (
    NAMES,
    Case,
    arrange,
    assert_near,
    backend_or_skip,
    check_against_reference,
    doubles,
)

from mmmobilemamba.ops import bidirectional_selective_scan, selective_scan

TOLERANCE = {torch.float64: 1e-11, torch.float32: 5e-6, torch.bfloat16: 1.2e-2, torch.float16: 2e-3}
FORMS = ('static', 'shared', 1, 2, 3)
LAYOUTS = ('contiguous', 'channels_last', 'strided', 'sliced', 'batch_inside')


@pytest.fixture(params=['torch', 'native'])
def backend(request) -> str:
    return backend_or_skip(request.param)


@pytest.fixture(params=['reference', 'torch', 'native'])
def any_backend(request) -> str:
    return backend_or_skip(request.param)


def recurrence(u, delta, A, B, C, D):
    """The definition for single numbers: no vectors, no in-place updates, no helper of the package."""
    batch, channels, length = u.shape
    y = torch.zeros_like(u)
    for b in range(batch):
        for d in range(channels):
            h = [0.0] * A.shape[1]
            for t in range(length):
                for n in range(A.shape[1]):
                    step = delta[b, d, t]
                    h[n] = torch.exp(step * A[d, n]) * h[n] + step * B[b, n, t] * u[b, d, t]
                    y[b, d, t] += C[b, n, t] * h[n]
                y[b, d, t] += D[d] * u[b, d, t]
    return y


def test_reference_is_the_definition():
    case = Case(batch=2, channels=2, states=3, length=5, dtype=torch.float64)
    u, delta, A, B, C, D, bias = (x.detach() for x in case.tensors())
    expected = recurrence(u, torch.log1p((delta + bias[:, None]).exp()), A, B, C, D)
    actual = selective_scan(u, delta, A, B, C, D, bias, delta_softplus=True, backend='reference')
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize('length', [1, 2, 3, 7, 12, 31, 32, 33, 64, 97, 144, 211, 1009])
@pytest.mark.parametrize('directions', [1, 2])
def test_lengths(backend, length, directions):
    case = Case(batch=1, channels=5, length=length, directions=directions)
    check_against_reference(case, backend, TOLERANCE[case.dtype])


@pytest.mark.parametrize('channels', [1, 8, 31, 32, 33, 40, 65])
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('directions', [1, 2])
def test_channels(backend, channels, layout, directions):
    case = Case(channels=channels, length=37, layout=layout, directions=directions)
    check_against_reference(case, backend, TOLERANCE[case.dtype])


@pytest.mark.parametrize('states', [1, 2, 3, 16])
@pytest.mark.parametrize('directions', [1, 2])
def test_states(backend, states, directions):
    case = Case(states=states, length=40, directions=directions)
    check_against_reference(case, backend, TOLERANCE[case.dtype])


@pytest.mark.parametrize('B', FORMS)
@pytest.mark.parametrize('C', FORMS)
def test_forms_of_B_and_C(backend, B, C):
    case = Case(states=2, B=B, C=C)
    check_against_reference(case, backend, TOLERANCE[case.dtype])


@pytest.mark.parametrize('layout', (*LAYOUTS, 'offset'))
@pytest.mark.parametrize('directions', [1, 2])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_strides(backend, layout, directions, dtype):
    case = Case(channels=34, length=45, layout=layout, directions=directions, dtype=dtype)
    check_against_reference(case, backend, TOLERANCE[dtype])


@pytest.mark.parametrize('directions', [1, 2])
def test_expanded_tensors(backend, directions):
    """Strides of zero: one picture repeated over the batch, and a gradient that is one number."""
    case = Case(batch=1, directions=directions)
    tensors = case.tensors()
    repeated = [x.expand(3, *x.shape[1:]) if x.dim() > 2 else x for x in tensors]
    y = case.run(repeated, backend)
    y.sum().backward()
    expected_inputs = doubles(tensors)
    expected = case.run(expected_inputs, 'reference')
    expected.sum().backward()
    assert_near(y, expected.expand(3, -1, -1), 5e-6, 'output')
    for name, x, e in zip(NAMES, tensors, expected_inputs, strict=True):
        assert_near(x.grad, 3 * e.grad, 5e-6, f'gradient of {name}')


@pytest.mark.parametrize('vectors', [False, True])
@pytest.mark.parametrize('softplus', [False, True])
@pytest.mark.parametrize('directions', [1, 2])
def test_options(backend, vectors, softplus, directions):
    case = Case(vectors=vectors, softplus=softplus, directions=directions)
    check_against_reference(case, backend, TOLERANCE[case.dtype])


@pytest.mark.parametrize('absent', [5, 6])
def test_one_vector_absent(backend, absent):
    case = Case()
    tensors = case.tensors()
    tensors[absent] = None
    y, grads = case.gradients(tensors, backend)
    expected, expected_grads = case.gradients(doubles(tensors), 'reference')
    assert_near(y, expected, 5e-6, 'output')
    for name, grad in grads.items():
        assert_near(grad, expected_grads[name], 5e-6, f'gradient of {name}')


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('directions', [1, 2])
def test_half_precision_is_rounded_once(any_backend, dtype, directions):
    """The output is that of the same numbers in float32, rounded: nothing inside is in half precision."""
    case = Case(channels=40, length=150, directions=directions, dtype=dtype)
    tensors = case.tensors()
    y = case.run(tensors, any_backend)
    exact = case.run(doubles(tensors), 'reference')
    assert y.dtype == dtype
    spacing = torch.finfo(dtype).eps * exact.abs().clamp_min(exact.abs().mean())
    assert ((y.double() - exact).abs() <= 0.51 * spacing).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('directions', [1, 2])
def test_half_precision_gradients(backend, dtype, directions):
    case = Case(channels=40, length=50, directions=directions, dtype=dtype)
    check_against_reference(case, backend, TOLERANCE[dtype])


@pytest.mark.parametrize('directions', [1, 2])
def test_mixed_types(any_backend, directions):
    """As under autocast: half-precision activations, float32 parameters."""
    case = Case(directions=directions)
    mixed = [torch.float16, torch.bfloat16, torch.float32, torch.bfloat16, torch.float32]
    tensors = [
        x.detach().to(dtype).requires_grad_()
        for x, dtype in zip(case.tensors(), [*mixed, torch.float32, torch.float16], strict=True)
    ]
    y, grads = case.gradients(tensors, any_backend)
    expected, expected_grads = case.gradients(doubles(tensors), 'reference')
    assert y.dtype == torch.float16
    assert_near(y, expected, 1e-3, 'output')
    for name, x in zip(NAMES, tensors, strict=True):
        assert grads[name].dtype == x.dtype
        assert_near(grads[name], expected_grads[name], 1.2e-2, f'gradient of {name}')


@pytest.mark.parametrize('directions', [1, 2])
def test_autocast_changes_nothing(any_backend, directions):
    case = Case(directions=directions, states=2)
    tensors = case.tensors()
    y, grads = case.gradients(tensors, any_backend)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        again, grads_again = case.gradients(tensors, any_backend)
    assert again.dtype == torch.float32
    assert torch.equal(y, again)
    assert all(torch.equal(grads[name], grads_again[name]) for name in grads)


@pytest.mark.parametrize('delta', [-1e4, -100.0, -1e-30, 0.0, 1e-30, 20.0, 100.0, 1e4])
@pytest.mark.parametrize('directions', [1, 2])
def test_extreme_steps_stay_finite(any_backend, delta, directions):
    case = Case(channels=33, length=70, states=2, directions=directions)
    tensors = case.tensors()
    with torch.no_grad():
        tensors[1].fill_(delta)
        tensors[6].zero_()
    y, grads = case.gradients(tensors, any_backend)
    expected, expected_grads = case.gradients(doubles(tensors), 'reference')
    assert_near(y, expected, 5e-6, 'output')
    for name, grad in grads.items():
        assert_near(grad, expected_grads[name], 1e-5, f'gradient of {name}')


@pytest.mark.parametrize('delta', [1e-30, 1e-3, 1e4])
def test_extreme_steps_without_softplus(any_backend, delta):
    case = Case(channels=33, length=70, softplus=False)
    tensors = case.tensors()
    with torch.no_grad():
        tensors[1].fill_(delta)
        tensors[6].zero_()
    y, grads = case.gradients(tensors, any_backend)
    expected, expected_grads = case.gradients(doubles(tensors), 'reference')
    assert_near(y, expected, 5e-6, 'output')
    for name, grad in grads.items():
        assert_near(grad, expected_grads[name], 1e-5, f'gradient of {name}')


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('delta', [-6e4, -100.0, 0.0, 20.0, 6e4])
@pytest.mark.parametrize('directions', [1, 2])
def test_extreme_steps_in_half_precision(any_backend, dtype, delta, directions):
    """Steps to the end of float16; u is small enough that the exact results fit into it."""
    case = Case(channels=33, length=70, states=2, directions=directions, dtype=dtype)
    tensors = case.tensors()
    with torch.no_grad():
        tensors[0].mul_(1e-2)
        tensors[3].mul_(1e-2)
        tensors[1].fill_(delta)
        tensors[2].fill_(-1)
        tensors[6].zero_()
    y = case.run(tensors, any_backend)
    grads = torch.autograd.grad(y.float().mean(), tensors)
    expected_inputs = doubles(tensors)
    expected = case.run(expected_inputs, 'reference')
    expected_grads = torch.autograd.grad(expected.mean(), expected_inputs)
    assert_near(y, expected, TOLERANCE[dtype], 'output')
    for name, grad, exact in zip(NAMES, grads, expected_grads, strict=True):
        assert grad.isfinite().all(), name
        # Beside the rounding, what float16 cannot tell from zero.
        error = (grad.double() - exact).abs().max()
        assert error <= 2 * TOLERANCE[dtype] * exact.abs().max() + 1e-7, name


@pytest.mark.parametrize('broken', [0, 1])
def test_nan_is_not_hidden(any_backend, broken):
    """A nan in u or delta reaches every later position of its channel, and no other channel."""
    case = Case(channels=33, length=70)
    tensors = [x.detach() for x in case.tensors()]
    tensors[2].fill_(-1e-3)
    tensors[broken][1, 2, 40] = float('nan')
    bad = case.run(tensors, any_backend).isnan()
    expected = torch.zeros_like(bad)
    expected[1, 2, 40:] = True
    assert torch.equal(bad, expected)


@pytest.mark.parametrize('directions', [1, 2])
def test_two_calls_one_graph(any_backend, directions):
    """Inputs are not overwritten, backward may run twice, and gradients of two calls add up."""
    case = Case(directions=directions)
    tensors = case.tensors()
    before = [x.detach().clone() for x in tensors]
    y = case.run(tensors, any_backend)
    y.sum().backward(retain_graph=True)
    once = [x.grad.clone() for x in tensors]
    y.sum().backward()
    for x, old, grad in zip(tensors, before, once, strict=True):
        assert torch.equal(x, old)
        torch.testing.assert_close(x.grad, 2 * grad)
    assert torch.equal(case.run(tensors, any_backend), y)


def test_only_what_needs_a_gradient_gets_one(any_backend):
    case = Case()
    tensors = [x.detach() for x in case.tensors()]
    assert not case.run(tensors, any_backend).requires_grad
    tensors[2].requires_grad_()
    case.run(tensors, any_backend).sum().backward()
    assert [x.grad is not None for x in tensors] == [False, False, True, False, False, False, False]


@pytest.mark.parametrize('directions', [1, 2])
def test_second_derivatives(any_backend, directions):
    case = Case(batch=1, channels=2, states=2, length=5, directions=directions)

    def gradient_penalty(tensors, backend):
        _, grads = case.gradients(tensors, backend, create_graph=True)
        return torch.autograd.grad(sum(g.double().square().sum() for g in grads.values()), tensors)

    tensors = case.tensors()
    actual = gradient_penalty(tensors, any_backend)
    expected = gradient_penalty(doubles(tensors), 'reference')
    for name, a, e in zip(NAMES, actual, expected, strict=True):
        assert_near(a, e, 2e-5, f'second gradient of {name}')


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_both_directions_are_two_scans(any_backend, layout):
    """One call for two directions equals two calls of the reference with everything flipped by hand."""
    case = Case(channels=7, states=2, length=29, directions=2, layout=layout)
    tensors = case.tensors()
    u, delta, A, B, C, D, bias = doubles(tensors)
    expected = 0
    for k, flip in enumerate((lambda x: x, lambda x: x.flip(-1))):
        part = slice(7 * k, 7 * k + 7)
        y = selective_scan(
            flip(u), flip(delta[:, k]), A[part], flip(B[:, k]), flip(C[:, k]), D[part], bias[part],
            delta_softplus=True, backend='reference',
        )  # fmt: skip
        expected = expected + flip(y)
    assert_near(case.run(tensors, any_backend), expected, 5e-6, 'output')


@pytest.mark.parametrize('directions', [1, 2])
def test_threads(any_backend, directions):
    """Calls from two threads at once do not disturb each other."""
    case = Case(channels=33, length=50, directions=directions)
    tensors = [x.detach() for x in case.tensors()]
    expected = case.run(tensors, any_backend)
    results, failures = [], []

    def work():
        try:
            own = [x.clone().requires_grad_() for x in tensors]
            for _ in range(5):
                y = case.run(own, any_backend)
                y.sum().backward()
                results.append(torch.equal(y, expected))
        except Exception as err:
            failures.append(err)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert results == [True] * 10


@pytest.mark.skipif(not hasattr(torch.library, 'custom_op'), reason='needs torch 2.4')
@pytest.mark.parametrize('scan', [selective_scan, bidirectional_selective_scan])
def test_compiles_without_a_break(backend, scan):
    directions = 2 if scan is bidirectional_selective_scan else 1
    case = Case(directions=directions, layout='channels_last')
    check_compiled(scan, case, backend)


@pytest.mark.skipif(not hasattr(torch.library, 'custom_op'), reason='needs torch 2.4')
def test_compiles_with_static_rows(backend):
    check_compiled(selective_scan, Case(B='static', C='static'), backend)


def check_compiled(scan, case: Case, backend: str) -> None:
    tensors = case.tensors()
    y, grads = case.gradients(tensors, backend)
    torch._dynamo.reset()
    compiled = torch.compile(scan, fullgraph=True, backend='aot_eager')
    again = compiled(*tensors, delta_softplus=True, backend=backend)
    given = torch.autograd.grad(again.double().square().sum(), tensors)
    assert again.stride() == y.stride()
    torch.testing.assert_close(again, y)
    for name, grad in zip(NAMES, given, strict=True):
        torch.testing.assert_close(grad, grads[name])


CASES = st.builds(
    Case,
    batch=st.integers(1, 3),
    channels=st.sampled_from([6, 12, 36, 66]),
    states=st.integers(1, 4),
    length=st.integers(1, 80),
    B=st.sampled_from(FORMS),
    C=st.sampled_from(FORMS),
    directions=st.sampled_from([1, 2]),
    vectors=st.booleans(),
    softplus=st.booleans(),
    layout=st.sampled_from(LAYOUTS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
    seed=st.integers(0, 9),
)


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(case=CASES)
def test_any_shape_type_and_stride(backend, case):
    if backend == 'native' and case.dtype == torch.float64:
        return
    check_against_reference(case, backend, 2 * TOLERANCE[case.dtype])


def test_layout_helper_changes_strides_only():
    x = torch.randn(3, 4, 5)
    for layout in LAYOUTS[1:]:
        y = arrange(x, layout)
        assert torch.equal(x, y)
        assert y.stride() != x.stride()
