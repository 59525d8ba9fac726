"""Checks of the arguments, and the choice of a backend."""

import pytest
import torch
from scan_cases import Case

from mmmobilemamba.errors import UserError
from mmmobilemamba.ops import (
    available_backends,
    bidirectional_selective_scan,
    check_backend,
    selective_scan,
)
from mmmobilemamba.ops.selective_scan import interface


def valid(directions: int) -> dict:
    names = ('u', 'delta', 'A', 'B', 'C', 'D', 'delta_bias')
    return dict(zip(names, Case(directions=directions, states=3).tensors(), strict=True))


WRONG_SHAPES = [
    ('u', (6, 13), r'u has shape \(6, 13\); expected is \(batch, D, L\) with L of at least 1'),
    ('u', (2, 6, 0), r'u has shape \(2, 6, 0\).*L of at least 1'),
    ('delta', (2, 6, 12), r'delta has shape \(2, 6, 12\), beside u of shape \(2, 6, 13\)'),
    ('A', (5, 3), r'A has shape \(5, 3\)'),
    ('A', (6,), r'A has shape \(6,\)'),
    ('B', (2, 3, 12), r'B has shape \(2, 3, 12\)'),
    ('C', (2, 4, 13), r'C has shape \(2, 4, 13\)'),
    ('D', (7,), r'D has shape \(7,\)'),
    ('delta_bias', (6, 1), r'delta_bias has shape \(6, 1\)'),
]


@pytest.mark.parametrize('directions', [1, 2])
@pytest.mark.parametrize(('name', 'shape', 'text'), WRONG_SHAPES)
def test_wrong_shapes(directions, name, shape, text):
    scan = bidirectional_selective_scan if directions == 2 else selective_scan
    with pytest.raises(ValueError, match=text):
        scan(**{**valid(directions), name: torch.randn(shape)})


@pytest.mark.parametrize('groups', [0, 4, 12])
def test_groups_divide_the_channels(groups):
    with pytest.raises(ValueError, match='where G divides D'):
        selective_scan(**{**valid(1), 'B': torch.randn(2, groups, 3, 13)})


@pytest.mark.parametrize('dtype', [torch.int64, torch.complex64, torch.bool])
def test_types(dtype):
    arguments = valid(1)
    arguments['A'] = arguments['A'].detach().to(dtype)
    with pytest.raises(TypeError, match=rf'A has data type {dtype}.*float16, bfloat16, float32, float64'):
        selective_scan(**arguments)


@pytest.mark.parametrize('name', ['u', 'A', 'D'])
def test_what_is_no_tensor(name):
    with pytest.raises(TypeError, match=f'{name} is a list; allowed are tensors'):
        selective_scan(**{**valid(1), name: [1.0]})


def test_devices():
    arguments = valid(1)
    arguments['C'] = arguments['C'].detach().to('meta')
    with pytest.raises(ValueError, match='C is on meta, but u is on cpu'):
        selective_scan(**arguments)


@pytest.mark.parametrize('call', [check_backend, lambda name: selective_scan(**valid(1), backend=name)])
def test_unknown_backend(call):
    with pytest.raises(
        UserError, match="Unknown.*'fast'.*'mamba_ssm', 'native', 'torch', 'reference'.*'auto'"
    ):
        call('fast')


@pytest.mark.parametrize('name', ['u', 'A', 'D'])
def test_forward_mode_is_of_the_reference_alone(name):
    arguments = {k: v.detach().double() for k, v in valid(1).items()}
    x, rest = arguments.pop(name), arguments

    def scan(x, backend):
        return selective_scan(**rest, **{name: x}, backend=backend)

    tangent, weight = torch.randn_like(x), torch.randn_like(arguments.get('u', x))
    y, dy = torch.func.jvp(lambda x: scan(x, 'reference'), (x,), (tangent,))
    _, pull = torch.func.vjp(lambda x: scan(x, 'reference'), x)
    torch.testing.assert_close((dy * weight).sum(), (pull(weight)[0] * tangent).sum())
    for backend in ('auto', *available_backends()[:-1]):
        with pytest.raises(UserError, match='Forward-mode.*scan_backend='):
            torch.func.jvp(lambda x, backend=backend: scan(x, backend), (x,), (tangent,))


def test_available_backends():
    assert set(available_backends()) >= {'torch', 'reference'}
    assert available_backends()[-1] == 'reference'
    for name in ('auto', *available_backends()):
        check_backend(name)


@pytest.fixture
def fresh(monkeypatch):
    """A dispatch that has chosen and said nothing yet, and backends that can be added to it."""
    monkeypatch.setattr(interface, '_backends', dict(interface._backends))
    monkeypatch.setattr(interface, '_chosen', {})
    monkeypatch.setattr(interface, '_announced', set())


def test_the_choice_is_said_once(fresh, said):
    for _ in range(3):
        selective_scan(**valid(1))
        bidirectional_selective_scan(**valid(2))
    assert len(said) == 1
    assert f'Selective scan on cpu: backend {available_backends()[0]!r}' in said[0]


def test_a_backend_is_one_register_call(fresh):
    def scan(u, *rest):
        return u + 1

    interface.register(interface.Backend('mine', rank=99, scan=scan))
    arguments = valid(1)
    assert torch.equal(selective_scan(**arguments), arguments['u'] + 1)
    assert available_backends()[0] == 'mine'


def test_a_better_backend_that_is_missing_is_named(fresh, said):
    absent = interface.Backend(
        'mine', rank=99, scan=lambda *x: x[0], missing=lambda: 'it is away', install='call it back'
    )
    interface.register(absent)
    selective_scan(**valid(1))
    assert "'mine' would be faster but cannot be used: it is away. To install it: call it back" in said[0]
    with pytest.raises(UserError, match="'mine' was asked for but cannot be used: it is away.*call it back"):
        selective_scan(**valid(1), backend='mine')


def test_a_better_backend_that_does_not_suit_is_passed_over(fresh, said):
    interface.register(
        interface.Backend(
            'mine', rank=99, scan=lambda *x: x[0], limits=lambda device, dtype, states: 'it takes nothing'
        )
    )
    selective_scan(**valid(1))
    assert 'mine' not in said[0]


def test_float64_is_computed_in_float64():
    arguments = {k: v.detach() for k, v in valid(1).items()}
    precise = {k: v.double() for k, v in arguments.items()}
    expected = selective_scan(**precise, backend='reference')
    torch.testing.assert_close(selective_scan(**precise), expected, rtol=1e-12, atol=1e-12)
    # One double among floats is enough.
    mixed = selective_scan(**{**arguments, 'A': precise['A']})
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, expected.float(), rtol=0, atol=1e-6)
