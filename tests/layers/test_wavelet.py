import numpy as np
import pytest
import pywt
import torch

from mmmobilemamba.layers import WaveletConv, dwt2d, idwt2d, wavelet_filters


@pytest.mark.parametrize('size', [(2, 2), (6, 4), (10, 16)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_haar_is_pywavelets_dwt2(size, dtype):
    x = torch.randn(2, 3, *size, dtype=dtype)
    approximation, details = pywt.dwt2(x.numpy(), 'haar')
    expected = np.concatenate((approximation, *details), axis=1)
    bands = dwt2d(x, wavelet_filters('haar')[0])
    np.testing.assert_allclose(bands.numpy(), expected, atol=1e-6)
    torch.testing.assert_close(idwt2d(bands, wavelet_filters('haar')[1]), x)


@pytest.mark.parametrize('wavelet', ['db2', 'db3', 'sym4', 'bior2.2'])
def test_longer_wavelets_are_pywavelets_without_the_outermost_coefficients(wavelet):
    analysis, synthesis = (f.double() for f in wavelet_filters(wavelet))
    height, width, half = 32, 24, analysis.shape[-1] // 2
    x = torch.randn(1, 2, height, width, dtype=torch.float64)
    # The layer centres its filters; PyWavelets' coefficients lie one pixel off where half of the filter's
    # length is even, so it is given a picture moved by one pixel.
    shift = (half - 1) % 2
    moved = np.pad(x.numpy(), ((0, 0), (0, 0), (shift, shift), (shift, shift)))
    approximation, details = pywt.dwt2(moved, wavelet, mode='zero')
    start = half // 2
    expected = np.concatenate((approximation, *details), axis=1)[
        ..., start : start + height // 2, start : start + width // 2
    ]
    bands = dwt2d(x, analysis)
    np.testing.assert_allclose(bands.numpy(), expected, atol=1e-6)
    inner = (..., slice(2 * half, -2 * half), slice(2 * half, -2 * half))
    torch.testing.assert_close(idwt2d(bands, synthesis)[inner], x[inner], atol=1e-6, rtol=0)


def _naive_wavelet_conv(layer, x):
    """Two levels by PyWavelets and dense arithmetic, for one image of even size divisible by 4."""
    bands, inputs = [], x
    for conv, scale in zip(layer.convs, layer.scales, strict=True):
        low, high = pywt.dwt2(inputs.numpy(), layer.wavelet)
        y = torch.from_numpy(np.concatenate((low, *high), 1)).to(x.dtype)
        bands.append((conv(y) * scale).detach())
        inputs = torch.from_numpy(low)
    result = 0.0
    for y in reversed(bands):
        low, *high = (band.numpy() for band in y.chunk(4, dim=1))
        result = pywt.idwt2((low + result, high), layer.wavelet)
    return torch.from_numpy(result)


@pytest.mark.parametrize('levels', [1, 2])
def test_wavelet_conv_against_pywavelets(levels):
    layer = WaveletConv(5, 3, 'haar', levels).double()
    x = torch.randn(1, 5, 16, 8, dtype=torch.float64)
    torch.testing.assert_close(layer(x).detach(), _naive_wavelet_conv(layer, x), atol=1e-6, rtol=0)


@pytest.mark.parametrize('wavelet', ['haar', 'db2'])
@pytest.mark.parametrize('levels', [1, 2])
@pytest.mark.parametrize('size', [(1, 1), (1, 6), (5, 7), (9, 3)])
def test_odd_sizes_are_padded_by_zeros_and_cropped(wavelet, levels, size):
    layer = WaveletConv(3, 5, wavelet, levels)
    x = torch.randn(2, 3, *size)
    y = layer(x)
    assert y.shape == x.shape
    padded = torch.nn.functional.pad(x, (0, size[1] % 2, 0, size[0] % 2))
    torch.testing.assert_close(y, layer(padded)[..., : size[0], : size[1]])


def test_memory_format_makes_no_difference():
    layer = WaveletConv(4, 3)
    x = torch.randn(2, 4, 7, 6)
    torch.testing.assert_close(layer(x), layer(x.to(memory_format=torch.channels_last)))


def test_gradcheck():
    layer = WaveletConv(2, 3, 'db2', 2).double()
    layer.analysis, layer.synthesis = layer.analysis.double(), layer.synthesis.double()
    assert torch.autograd.gradcheck(layer, torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True))


def test_unknown_wavelet_names_what_is_allowed():
    with pytest.raises(ValueError, match=r"wavelet='nope'.*pywt.wavelist"):
        WaveletConv(4, 3, 'nope')
    with pytest.raises(ValueError, match='levels=0'):
        WaveletConv(4, 3, levels=0)
