"""The compiled Haar transform against the one in PyTorch; tests/layers/test_wavelet.py asks PyWavelets."""

import pytest
import torch

from mmmobilemamba.ops import haar, haar_analysis, haar_synthesis

SIZES = [(1, 1), (1, 6), (2, 2), (5, 7), (8, 6), (33, 40)]


@pytest.fixture
def registered(built) -> None:
    haar._operators_registered()


def images(size, dtype=torch.float32):
    """One tensor in every kind of memory that the network and its users have."""
    x = torch.randn(2, 5, *size, dtype=dtype)
    channels_last = x.to(memory_format=torch.channels_last)
    yield from (x, channels_last, x[:, 1:4], channels_last[:, 1:4])
    yield from (x[:, ::2], x.flip(0), x[:, :1].expand(2, 5, *size))
    yield torch.randn(2, 5, *size[::-1]).to(dtype).transpose(2, 3)


def in_pytorch(monkeypatch, run):
    with monkeypatch.context() as patch:
        patch.setattr(haar, '_runs_natively', lambda x: False)
        return run()


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_compiled_is_pytorch(registered, monkeypatch, size, dtype):
    tolerance = dict(rtol=0, atol=4 * 4 * torch.finfo(dtype).eps)
    for x in images(size, dtype):
        bands = haar_analysis(x)
        torch.testing.assert_close(bands, in_pytorch(monkeypatch, lambda x=x: haar_analysis(x)), **tolerance)
        y = haar_synthesis(bands, *size)
        expected = in_pytorch(monkeypatch, lambda b=bands: haar_synthesis(b, *size))
        torch.testing.assert_close(y, expected, rtol=0, atol=8 * tolerance['atol'])
        torch.testing.assert_close(y, 4 * x, rtol=0, atol=16 * tolerance['atol'])


def test_several_threads_give_the_same(registered, set_num_threads):
    x = torch.randn(2, 40, 33, 50)  # enough that each of them gets a part
    results = []
    for count in (1, 3):
        set_num_threads(count)
        results.append((bands := haar_analysis(x), haar_synthesis(bands, 33, 50)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize('size', [(1, 1), (2, 2), (1, 6), (5, 3)])
def test_gradients(size):
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(haar_analysis, x)
    assert torch.autograd.gradgradcheck(haar_analysis, x)
    y = haar_analysis(x).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: haar_synthesis(y, *size), y)


def test_operators(registered):
    for x in list(images((5, 6)))[1:4:2]:
        y = torch.ops.mmmobilemamba.haar_analysis(x)
        torch.library.opcheck(torch.ops.mmmobilemamba.haar_analysis.default, (x.requires_grad_(),))
        torch.library.opcheck(torch.ops.mmmobilemamba.haar_synthesis.default, (y.requires_grad_(), 5, 6))


def test_operators_refuse_what_does_not_fit(registered):
    with pytest.raises(RuntimeError, match='given are 3 dimensions'):
        torch.ops.mmmobilemamba.haar_analysis(torch.zeros(4, 4, 4))
    with pytest.raises(RuntimeError, match='do not make an image of 5x4'):
        torch.ops.mmmobilemamba.haar_synthesis(torch.zeros(1, 4, 2, 2), 5, 4)


@pytest.mark.parametrize('size', [(4, 4), (5, 7)])
def test_memory_format_is_kept(size):
    x = torch.randn(2, 3, *size).to(memory_format=torch.channels_last)
    bands = haar_analysis(x)
    assert bands.is_contiguous(memory_format=torch.channels_last)
    assert haar_synthesis(bands, *size).stride(1) == 1
    assert haar_analysis(x.contiguous()).is_contiguous()
