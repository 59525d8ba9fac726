"""Two-direction selective scan over the pixels of a feature map."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..ops import bidirectional_selective_scan
from .conv_bn import DEFAULT_NORM, ConvBN, NormCfg


class SS2D(nn.Module):
    """State-space mixing of all pixels, read in row-major order and in its reverse.

    Symbols: C = ``channels``, D = inner width (``expansion · C``), N = ``d_state``,
    R = ceil(C / 16) the rank of Δ, K = 2 directions, L = H·W (MobileMamba, Sec. 3.2; Mamba, Alg. 2).

    Args:
        channels: width C of input and output.
        expansion: inner width over C.
        d_state: state size N per inner channel.
        scan_backend: backend of :func:`mmmobilemamba.ops.selective_scan`.
        norm_cfg: config of the batch normalisations.

    Shape: (B, C, H, W) → (B, C, H, W).
    """

    def __init__(self, channels: int, expansion: float = 2.0, d_state: int = 1,
                 scan_backend: str = 'auto', norm_cfg: NormCfg = DEFAULT_NORM) -> None:
        super().__init__()
        inner, rank, directions = int(expansion * channels), math.ceil(channels / 16), 2
        self.d_state, self.rank, self.scan_backend = d_state, rank, scan_backend
        self.in_proj = ConvBN(channels, 2 * inner, norm_cfg=norm_cfg)
        self.conv = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        bound = inner ** -0.5  # what nn.Linear(inner, rank + 2 * d_state) starts from
        self.x_proj_weight = nn.Parameter(
            torch.empty(directions, rank + 2 * d_state, inner).uniform_(-bound, bound))
        self.dt_proj_weight = nn.Parameter(0.1 * torch.rand(directions, inner, rank))
        self.dt_proj_bias = nn.Parameter(0.1 * torch.rand(directions, inner))
        self.A_log = nn.Parameter(torch.zeros(directions * inner, d_state))
        self.D = nn.Parameter(torch.ones(directions * inner))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = ConvBN(inner, channels, norm_cfg=norm_cfg)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x, gate = self.in_proj(x).chunk(2, dim=1)
        y = self._scan(F.silu(self.conv(x)))
        # Where the scan returns float32 for half-precision inputs, a half-precision model goes on in its own.
        y = self.out_norm(y.transpose(1, 2).to(self.out_norm.weight.dtype))
        y = y.transpose(1, 2).unflatten(2, (height, width))
        return self.out_proj(y * F.silu(gate))

    def _scan(self, x: Tensor) -> Tensor:
        """(B, D, H, W) → (B, D, L): Δ, B and C from the pixels themselves, then the scan."""
        batch, inner = x.shape[:2]
        per_direction = self.rank + 2 * self.d_state
        # Projections are per pixel, so they need no flipping: both directions in one 1x1 convolution.
        proj = F.conv2d(x, self.x_proj_weight.view(-1, inner, 1, 1))
        proj = proj.flatten(2).unflatten(1, (2, per_direction))
        dt, B, C = proj.split((self.rank, self.d_state, self.d_state), dim=2)
        delta = torch.stack([torch.matmul(self.dt_proj_weight[k], dt[:, k]) for k in range(2)], 1)
        return bidirectional_selective_scan(
            x.flatten(2), delta, -self.A_log.float().exp(), B, C, self.D.float(),
            delta_bias=self.dt_proj_bias.float().flatten(), delta_softplus=True,
            backend=self.scan_backend)
