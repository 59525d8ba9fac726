"""The depth-wise convolution against PyTorch's own, values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mmmobilemamba.ops import depthwise_conv2d

SIZES = [(1, 1), (2, 9), (5, 3), (8, 8), (17, 12)]


def in_pytorch(x, weight, bias=None):
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=x.shape[1])


def gradients(conv, x, weight, create_graph=False):
    x, weight = (t.detach().requires_grad_() for t in (x, weight))
    y = conv(x, weight)
    return y, *torch.autograd.grad((y * y.detach().cos()).sum(), (x, weight), create_graph=create_graph)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('kernel_size', [3, 5, 7, 9])
@pytest.mark.parametrize('channels', [1, 16, 37])
@pytest.mark.kernels
def test_equals_conv2d(size, kernel_size, channels):
    x, weight = torch.randn(3, channels, *size), torch.randn(channels, 1, kernel_size, kernel_size)
    expected = gradients(in_pytorch, x.double(), weight.double())
    tolerance = dict(rtol=1e-5, atol=1e-5 * expected[2].abs().max().item())
    for memory in (x, x.to(memory_format=torch.channels_last), x.repeat(1, 2, 1, 1)[:, :channels]):
        for got, want in zip(gradients(depthwise_conv2d, memory, weight), expected, strict=True):
            torch.testing.assert_close(got.double(), want, **tolerance)


@pytest.mark.kernels
def test_several_threads_give_the_same(built, set_num_threads):
    # Enough pixels and channels that each of them gets a part.
    x, weight = torch.randn(2, 40, 33, 50), torch.randn(40, 1, 5, 5)
    results = []
    for count in (1, 3):
        set_num_threads(count)
        results.append(gradients(depthwise_conv2d, x, weight))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.kernels
def test_half_precision(dtype):
    x, weight = torch.randn(2, 20, 9, 6).to(dtype), torch.randn(20, 1, 5, 5).to(dtype)
    expected = gradients(in_pytorch, x.float(), weight.float())
    for got, want in zip(gradients(depthwise_conv2d, x, weight), expected, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(
            got.float(), want, rtol=0, atol=8 * torch.finfo(dtype).eps * want.abs().max().item()
        )


def test_autocast_computes_in_its_type():
    x, weight = torch.randn(1, 16, 6, 6), torch.randn(16, 1, 5, 5)
    with torch.autocast('cpu', torch.bfloat16):
        y, dx, dweight = gradients(depthwise_conv2d, x, weight)
    assert (y.dtype, dx.dtype, dweight.dtype) == (torch.bfloat16, torch.float32, torch.float32)


def test_autocast_leaves_what_conv2d_leaves():
    """Float64, and the backward pass of what ran outside."""
    x, weight = torch.randn(1, 16, 6, 6, requires_grad=True), torch.randn(16, 1, 5, 5)
    outside, expected = depthwise_conv2d(x, weight).sum(), in_pytorch(x, weight).sum()
    with torch.autocast('cpu', torch.bfloat16):
        assert depthwise_conv2d(x.double(), weight.double()).dtype == torch.float64
        torch.testing.assert_close(torch.autograd.grad(outside, x), torch.autograd.grad(expected, x))


class Calls(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.kernels
def test_gradient_is_the_compiled_one(built):
    """That all the above compares two things, and not PyTorch with itself."""
    for kernel_size in (3, 5, 7, 9):
        with Calls() as calls:
            x, weight = torch.randn(1, 16, 6, 6), torch.randn(16, 1, kernel_size, kernel_size)
            gradients(depthwise_conv2d, x, weight)
        compiled = 'mmmobilemamba::depthwise_weight_gradient' in calls.names
        assert compiled == (kernel_size < 9) == ('aten::convolution_backward' not in calls.names)


@pytest.mark.parametrize('needed', ['x', 'weight', 'bias'])
def test_frozen_parts(needed):
    tensors = dict(x=torch.randn(2, 20, 6, 5), weight=torch.randn(20, 1, 5, 5), bias=torch.randn(20))
    tensors[needed].requires_grad_()
    y, expected = depthwise_conv2d(**tensors), in_pytorch(**tensors)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    got, want = (torch.autograd.grad(z.sin().sum(), tensors[needed])[0] for z in (y, expected))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('channels', [3, 20])
def test_can_be_differentiated_twice(channels):
    x, weight = torch.randn(1, channels, 5, 4), torch.randn(channels, 1, 5, 5)

    def second(conv):
        x_, weight_ = (t.clone().requires_grad_() for t in (x, weight))
        first = torch.autograd.grad(conv(x_, weight_).sin().sum(), (x_, weight_), create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), (x_, weight_))

    for got, want in zip(second(depthwise_conv2d), second(in_pytorch), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4 * want.abs().max().item())


def test_operator_of_the_gradient(built):
    depthwise_conv2d(torch.randn(1, 1, 5, 5), torch.randn(1, 1, 5, 5, requires_grad=True))
    operator = torch.ops.mmmobilemamba.depthwise_weight_gradient.default
    x = torch.randn(2, 20, 6, 3)
    torch.library.opcheck(operator, (x.flip(0), x, 5))
    for wrong in ((x[:1], x, 5), (x[0], x[0], 5), (x, x, 4)):
        with pytest.raises(RuntimeError, match='depthwise'):
            operator(*wrong)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_operator(built, dtype):
    depthwise_conv2d(torch.randn(1, 16, 5, 5), torch.randn(16, 1, 5, 5))
    operator = torch.ops.mmmobilemamba.depthwise_conv2d.default
    weight, bias = torch.randn(3, 3, 1, 27).permute(3, 2, 0, 1).to(dtype), torch.randn(27).to(dtype)
    for x in (torch.randn(2, 27, 7, 11).to(dtype), torch.full((1, 27, 2, 2), float('nan'), dtype=dtype)):
        for b in (bias, None):
            y = operator(x, weight, b)
            assert y.is_contiguous(memory_format=torch.channels_last)
            expected = in_pytorch(x.float(), weight.float())
            expected += 0 if b is None else bias.float().view(-1, 1, 1)
            eps = torch.finfo(dtype).eps
            torch.testing.assert_close(y, expected.to(dtype), rtol=4 * eps, atol=16 * eps, equal_nan=True)
    torch.library.opcheck(operator, (torch.randn(2, 27, 7, 11).to(dtype), weight, bias))
    for wrong in (torch.randn(1, 27, 4, 4).double(), torch.randn(1, 26, 4, 4), torch.randn(27, 4, 4)):
        with pytest.raises(RuntimeError, match='depthwise'):
            operator(wrong, weight, bias)
