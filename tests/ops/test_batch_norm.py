"""Batch normalisation with what follows it against PyTorch's own in float64."""

import copy

import pytest
import torch
from torch import nn

from mmmobilemamba.ops import batch_norm

SIZES = [(2, 3, 1), (1, 5, 7), (3, 40, 33)]


def layer(channels: int, training: bool, **options) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, **options).train(training)
    if norm.affine:
        nn.init.uniform_(norm.weight, -1, 1.5)
        nn.init.normal_(norm.bias)
    if norm.track_running_stats:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return norm


def in_pytorch(norm, x, relu, add):
    y = norm(x).relu() if relu else norm(x)
    return y if add is None else y + add


def gradients(function, norm, x, relu, add, second=False):
    """The result, the statistics, and first or second derivatives."""
    norm = copy.deepcopy(norm)
    leaves = [t.detach().requires_grad_() for t in (x, add) if t is not None]
    y = function(norm, leaves[0], relu, leaves[1] if len(leaves) > 1 else None)
    leaves += norm.parameters()
    grads = torch.autograd.grad((y * y.detach().cos()).sum(), leaves, create_graph=second)
    if second:
        grads = torch.autograd.grad(sum(g.square().sum() for g in grads), [leaves[0], norm.weight])
    return [y, *norm.buffers(), *grads]


def smooth(norm, x, relu, add):
    """Whether no value lies so near to the bend of the ReLU that rounding decides its gradient."""
    return not relu or copy.deepcopy(norm)(x).abs().min() > 1e-6


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('channels', [3, 16, 25, 100])
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('relu, with_add', [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize('second', [False, True])
@pytest.mark.kernels
def test_equals_pytorch(size, channels, training, relu, with_add, second):
    norm = layer(channels, training)
    for seed in range(20):
        torch.manual_seed(seed)
        x = 3 * torch.randn(size[0], channels, *size[1:]) + 5
        if smooth(norm, x, relu, None):
            break
    add = torch.randn_like(x) if with_add else None
    double = [None if t is None else t.double() for t in (x, add)]
    expected = gradients(in_pytorch, copy.deepcopy(norm).double(), double[0], relu, double[1], second)
    for memory in (x, x.to(memory_format=torch.channels_last), x.transpose(2, 3).clone().transpose(2, 3)):
        got = gradients(batch_norm, norm, memory, relu, add, second)
        for a, b in zip(got, expected, strict=True):
            assert (a - b).abs().max() <= 2e-4 * max(1, b.abs().max())
            assert a.dtype == (torch.int64 if b.dtype == torch.int64 else torch.float32)


@pytest.mark.parametrize('shape', [(0, 16, 4, 4), (2, 16, 0, 3)])
def test_nothing_to_normalise_changes_nothing(shape):
    norm = layer(16, True)
    variance = norm.running_var.clone()
    batch_norm(norm, torch.randn(shape)).sum().backward()
    assert torch.equal(norm.running_var, variance) and not norm.weight.grad.any()


@pytest.mark.kernels
def test_mean_far_from_zero():
    """No variance may come out of a difference of large squares."""
    norm, x = layer(16, True, momentum=1.0), 1e4 + torch.randn(2, 16, 30, 30)
    twin = copy.deepcopy(norm).double()
    # Float32 knows numbers around 10,000 to within a thousandth, and so the mean.
    torch.testing.assert_close(batch_norm(norm, x).double(), twin(x.double()), rtol=0, atol=0.01)
    torch.testing.assert_close(norm.running_var.double(), twin.running_var, rtol=1e-4, atol=0)


@pytest.mark.kernels
def test_bfloat16(built):
    """Maps of autocast, with weights in float32."""
    norm, x, add = layer(40, True), torch.randn(2, 40, 9, 8).bfloat16(), torch.randn(2, 40, 9, 8).bfloat16()
    expected = gradients(in_pytorch, norm, x.float(), False, add.float())
    y, *rest = gradients(batch_norm, norm, x, False, add)
    assert y.dtype == torch.bfloat16
    for a, b in zip([y, *rest], expected, strict=True):
        torch.testing.assert_close(a.to(b.dtype), b, rtol=0.02, atol=0.02 * max(1, b.abs().max().item()))


@pytest.mark.parametrize('options', [dict(momentum=None), dict(track_running_stats=False), dict(eps=0.1)])
def test_options_of_the_layer(options):
    norm = layer(20, True, **options)
    twin = copy.deepcopy(norm)
    for _ in range(3):
        x = torch.randn(2, 20, 5, 4)
        torch.testing.assert_close(batch_norm(norm, x), twin(x), rtol=1e-4, atol=1e-5)
    for a, b in zip(norm.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(batch_norm(norm.eval(), x), twin.eval()(x), rtol=1e-4, atol=1e-5)


def test_frozen_in_part(built):
    """As those of a detector whose stem is frozen, or in evaluation mode while the rest is trained."""
    norm, x = layer(16, False), torch.randn(2, 16, 4, 4)
    norm.weight.requires_grad_(False)
    batch_norm(norm, x, relu=True).sum().backward()
    assert norm.weight.grad is None and norm.bias.grad is not None
    norm.requires_grad_(False)
    assert not batch_norm(norm, x).requires_grad


@pytest.mark.kernels
def test_several_threads_give_nearly_the_same(built, set_num_threads):
    norm, x = layer(48, True), torch.randn(2, 48, 40, 40)
    results = []
    for count in (1, 3):
        set_num_threads(count)
        results.append(gradients(batch_norm, norm, x, True, None))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_one_value_for_each_channel_is_refused():
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        batch_norm(layer(16, True), torch.randn(1, 16, 1, 1))


def test_other_layers_run_themselves():
    x, called = torch.randn(2, 16, 4, 4), []
    for norm in (nn.GroupNorm(4, 16), nn.Identity(), layer(16, True, affine=False), layer(16, True).double()):
        x_ = x.double() if any(p.dtype == torch.float64 for p in norm.parameters()) else x
        torch.testing.assert_close(batch_norm(norm, x_.clone(), True, x_), in_pytorch(norm, x_, True, x_))
    norm = layer(16, True)
    norm.register_forward_hook(lambda *_: called.append(1))
    batch_norm(norm, x)
    assert called


def test_operator(built):
    norm, x = layer(20, True), torch.randn(2, 20, 5, 3)
    batch_norm(norm, x)
    operator = torch.ops.mmmobilemamba.batch_norm.default
    rest = norm.running_mean, norm.running_var, True, 0.1, 1e-5, False, None
    arguments = x.requires_grad_(), norm.weight, norm.bias, *rest
    torch.library.opcheck(operator, arguments, test_utils=('test_schema', 'test_faketensor'))
    for wrong in (x[0], x.double(), x[:, :15]):
        with pytest.raises(RuntimeError, match='batch_norm: '):
            operator(wrong, norm.weight, norm.bias, *rest)
    for wrong in (norm.weight.double(), norm.weight[1:]):
        with pytest.raises(RuntimeError, match='batch_norm: '):
            operator(x, wrong, norm.bias, *rest)
    with pytest.raises(RuntimeError, match='batch_norm: no running statistics'):
        operator(x, norm.weight, norm.bias, None, None, False, 0.1, 1e-5, False, None)
