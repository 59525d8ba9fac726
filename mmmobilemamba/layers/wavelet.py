"""Discrete wavelet transform as network layers, and the wavelet convolution between the two.

Sub-bands are stored one after the other along the channels, ``[LL, HL, LH, HH]`` of C channels each;
the first letter is the filter along the rows' axis (height), the second along the columns' (width).
In the terms of PyWavelets these are ``cA, cH, cV, cD`` of ``dwt2``.
"""

import pywt
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..ops import depthwise_conv2d, haar_analysis, haar_synthesis
from .compiled import in_float32
from .conv_bn import DepthwiseConv2d
from .fused_conv import FusedConv2d


def wavelet_filters(wavelet: str) -> tuple[Tensor, Tensor]:
    """2-D analysis and synthesis filters of a wavelet.

    Args:
        wavelet: name of a discrete wavelet of PyWavelets with even filter length, e.g. ``'haar'``.

    Returns:
        Two float32 tensors (4, K, K): the correlation kernels of the four sub-bands, and the
        kernels whose transposed convolution inverts them.

    Raises:
        ValueError: when PyWavelets does not know the wavelet.
    """
    try:
        w = pywt.Wavelet(wavelet)
    except (ValueError, TypeError) as err:
        raise ValueError(
            f'wavelet={wavelet!r} is not a discrete wavelet of PyWavelets; allowed are '
            f'the names in pywt.wavelist(kind="discrete"), e.g. "haar", "db2"'
        ) from err
    # Convolution frameworks correlate; PyWavelets convolves, hence the reversal.
    lo, hi = (torch.tensor(f[::-1], dtype=torch.float64) for f in (w.dec_lo, w.dec_hi))
    rec_lo, rec_hi = (torch.tensor(f, dtype=torch.float64) for f in (w.rec_lo, w.rec_hi))

    def bands(low: Tensor, high: Tensor) -> Tensor:
        pairs = ((low, low), (high, low), (low, high), (high, high))
        return torch.stack([torch.outer(rows, cols) for rows, cols in pairs]).float()

    return bands(lo, hi), bands(rec_lo, rec_hi)


def _depthwise_kernels(filters: Tensor, channels: int) -> Tensor:
    """(4, K, K) → (C*4, 1, K, K), the four kernels of a channel adjacent, as grouped convs need."""
    return filters.repeat(channels, 1, 1)[:, None]


def dwt2d(x: Tensor, filters: Tensor) -> Tensor:
    """One level of the 2-D wavelet transform.

    Args:
        x: (B, C, H, W), H and W even.
        filters: (4, K, K) analysis filters of :func:`wavelet_filters`.

    Returns:
        (B, 4C, H/2, W/2), sub-band by sub-band. The filters are centred and see zeros beyond the borders:
        for K = 2 exactly PyWavelets' ``dwt2``, for longer ones its mode ``'zero'`` without the outermost
        coefficients (and one pixel further where K/2 is even).
    """
    if filters.shape[-1] == 2:
        return 0.5 * haar_analysis(x)
    b, c, h, w = x.shape
    y = F.conv2d(x, _depthwise_kernels(filters, c), stride=2, padding=filters.shape[-1] // 2 - 1, groups=c)
    return y.view(b, c, 4, h // 2, w // 2).transpose(1, 2).flatten(1, 2)


def idwt2d(y: Tensor, filters: Tensor) -> Tensor:
    """Inverse of :func:`dwt2d` (exact away from the borders where K > 2).

    Args:
        y: (B, 4C, H, W), sub-band by sub-band.
        filters: (4, K, K) synthesis filters of :func:`wavelet_filters`.

    Returns:
        (B, C, 2H, 2W).
    """
    if filters.shape[-1] == 2:
        return 0.5 * haar_synthesis(y, 2 * y.shape[2], 2 * y.shape[3])
    b, c4, h, w = y.shape
    y = y.view(b, 4, c4 // 4, h, w).transpose(1, 2).flatten(1, 2)
    return F.conv_transpose2d(
        y, _depthwise_kernels(filters, c4 // 4), stride=2, padding=filters.shape[-1] // 2 - 1, groups=c4 // 4
    )


class WaveletConv(nn.Module):
    """``IWT(scale · DWConv_k(WT(x)))``, recursively on the low-pass band (MobileMamba, Sec. 3.2).

    Args:
        channels: channels C of the input.
        kernel_size: odd side of the depth-wise kernel applied to the sub-bands.
        wavelet: name of a discrete wavelet of PyWavelets.
        levels: how many times the low-pass band is transformed again; the published networks use 1.

    Shape: (B, C, H, W) → (B, C, H, W). An odd H or W is padded by a zero at the bottom or right.
    """

    def __init__(self, channels: int, kernel_size: int, wavelet: str = 'haar', levels: int = 1) -> None:
        super().__init__()
        if levels < 1:
            raise ValueError(f'levels={levels} is not allowed; a wavelet convolution needs at least 1')
        self.wavelet = wavelet
        analysis, synthesis = wavelet_filters(wavelet)
        self.register_buffer('analysis', analysis, persistent=False)
        self.register_buffer('synthesis', synthesis, persistent=False)
        self.convs = nn.ModuleList(DepthwiseConv2d(4 * channels, kernel_size) for _ in range(levels))
        self.scales = nn.ParameterList(
            nn.Parameter(torch.full((1, 4 * channels, 1, 1), 0.1)) for _ in range(levels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self._level(x, 0)

    def _level(self, x: Tensor, level: int) -> Tensor:
        channels, height, width = x.shape[1:]
        if self._is_haar:
            bands = haar_analysis(x)
        else:
            bands = dwt2d(F.pad(x, (0, width % 2, 0, height % 2)), self.analysis)
        y = self._convolve(bands, level)
        if level + 1 < len(self.convs):
            low = self._gain * self._level(self._gain * bands[:, :channels], level + 1)
            y = torch.cat((y[:, :channels] + low, y[:, channels:]), dim=1)
        if self._is_haar:
            return haar_synthesis(y, height, width)
        return idwt2d(y, self.synthesis)[:, :, :height, :width]

    @property
    def is_haar_level(self) -> bool:
        """Whether it is one level of Haar, as the published networks have it."""
        return self._is_haar and len(self.convs) == 1

    def compiled_weights(self) -> list[Tensor]:
        """Folded kernels as the compiled blocks read them: (C/16, k, k, 4, 16)."""
        kernels = self.convs[0].weight[:, 0]
        return in_float32(kernels.unflatten(0, (4, -1, 16)).permute(1, 3, 4, 0, 2))

    @property
    def _is_haar(self) -> bool:
        return self.analysis.shape[-1] == 2

    @property
    def _gain(self) -> float:
        """What makes :func:`haar_analysis` or :func:`haar_synthesis` the orthonormal transform."""
        return 0.5 if self._is_haar else 1.0

    def _convolve(self, bands: Tensor, level: int) -> Tensor:
        conv = self.convs[level]
        if self.scales is None:
            return conv(bands)
        return depthwise_conv2d(bands, self._scaled_weight(level))

    def _scaled_weight(self, level: int) -> Tensor:
        """Kernels with the scale and both gains: cheaper here than on the maps."""
        return self.convs[level].weight * (self._gain**2 * self.scales[level]).view(-1, 1, 1, 1)

    def fuse(self) -> 'WaveletConv':
        """Fold the scales into the kernels."""
        for level, conv in enumerate(self.convs):
            conv.weight.data = self._scaled_weight(level).detach()
            self.convs[level] = FusedConv2d(conv)
        del self.scales  # as a module; None in its place would be one too, which not every visitor expects
        self.scales = None
        return self
