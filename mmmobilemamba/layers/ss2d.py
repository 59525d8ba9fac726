"""Two-direction selective scan over the pixels of a feature map."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..ops import bidirectional_selective_scan, choose_backend
from .compiled import in_float32, kernel_weights, packed, product_weights
from .conv_bn import DEFAULT_NORM, ConvBN, DepthwiseConv2d, NormCfg, pointwise
from .fused_conv import FusedConv2d


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

    def __init__(
        self,
        channels: int,
        expansion: float = 2.0,
        d_state: int = 1,
        scan_backend: str = 'auto',
        norm_cfg: NormCfg = DEFAULT_NORM,
    ) -> None:
        super().__init__()
        inner, rank, directions = int(expansion * channels), math.ceil(channels / 16), 2
        self.d_state, self.rank, self.scan_backend = d_state, rank, scan_backend
        self.in_proj = ConvBN(channels, 2 * inner, norm_cfg=norm_cfg)
        self.gate_proj: FusedConv2d | None = None
        self.scan_weights: nn.ParameterList | None = None
        self.conv = DepthwiseConv2d(inner, 3, bias=True)
        bound = inner**-0.5  # what nn.Linear(inner, rank + 2 * d_state) starts from
        self.x_proj_weight = nn.Parameter(
            torch.empty(directions, rank + 2 * d_state, inner).uniform_(-bound, bound)
        )
        self.dt_proj_weight = nn.Parameter(0.1 * torch.rand(directions, inner, rank))
        self.dt_proj_bias = nn.Parameter(0.1 * torch.rand(directions, inner))
        self.A_log = nn.Parameter(torch.zeros(directions * inner, d_state))
        self.D = nn.Parameter(torch.ones(directions * inner))
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = ConvBN(inner, channels, norm_cfg=norm_cfg)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        x, gate = self._project(x)
        y = self._scan(x)
        # Where the scan returns float32 for half-precision inputs, a half-precision model goes on in its own.
        y = self.out_norm(y.transpose(1, 2).to(self.out_norm.weight.dtype))
        y = y.transpose(1, 2).unflatten(2, (height, width))
        return self.out_proj(y * gate)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What the scan reads, and the gate of what it gives, each (B, D, H, W)."""
        if self.gate_proj is not None:
            return self.conv(self.in_proj(x)), self.gate_proj(x)
        x, gate = self.in_proj(x).chunk(2, dim=1)
        return F.silu(self.conv(x)), F.silu(gate)

    def _scan(self, x: Tensor) -> Tensor:
        """(B, D, H, W) → (B, D, L): Δ, B and C from the pixels themselves, then the scan."""
        inner = x.shape[1]
        to_scan, to_delta, A, D, delta_bias = self.scan_weights or self._scan_weights()
        proj = pointwise(x, to_scan)
        dt, B_and_C = proj.split((2 * self.rank, 4 * self.d_state), dim=1)
        delta = pointwise(dt, to_delta)
        B, C = B_and_C.flatten(2).unflatten(1, (2, 2, self.d_state)).unbind(2)
        return bidirectional_selective_scan(
            x.flatten(2),
            delta.flatten(2).unflatten(1, (2, inner)),
            A,
            B,
            C,
            D,
            delta_bias=delta_bias,
            delta_softplus=True,
            backend=self.scan_backend,
        )

    def _scan_weights(self) -> tuple[Tensor, ...]:
        """1x1 kernels that make Δ's low-rank form, B and C, then Δ; A, D and the bias of Δ.

        Projections are per pixel, so they need no flipping: both directions in one 1x1 convolution,
        and Δ of both in a second one, whose weight is block-diagonal.
        """
        to_dt, to_B_and_C = self.x_proj_weight.split((self.rank, 2 * self.d_state), dim=1)
        return (
            torch.cat((to_dt.flatten(0, 1), to_B_and_C.flatten(0, 1)))[..., None, None],
            torch.block_diag(*self.dt_proj_weight)[..., None, None],
            -self.A_log.to(torch.promote_types(self.A_log.dtype, torch.float32)).exp(),
            self.D,
            self.dt_proj_bias.flatten(),
        )

    def fuse(self) -> 'SS2D':
        """Let the convolutions take in the SiLUs, which calls for two input projections, and keep what
        the scan is given instead of the parameters that it comes from."""
        self.in_proj, self.gate_proj = self.in_proj.chunk('none', 'swish')
        self.conv = FusedConv2d(self.conv, 'swish')
        self.scan_weights = nn.ParameterList(w.detach().to(self.D.dtype) for w in self._scan_weights())
        del self.x_proj_weight, self.dt_proj_weight, self.dt_proj_bias, self.A_log, self.D
        return self

    @property
    def can_compile(self) -> bool:
        """Whether the compiled backend is the one for maps in float32 or bfloat16 on a CPU."""
        return choose_backend(self.scan_backend, 'cpu', torch.float32, self.d_state) == 'native'

    def compiled_weights(self) -> list[Tensor]:
        """Folded weights in the order in which the compiled blocks read them."""
        to_scan, to_delta, *of_scan = self.scan_weights
        # The blocks of the diagonal, (2, R, D).
        blocks = zip(to_delta.flatten(1).chunk(2), range(0, 2 * self.rank, self.rank), strict=True)
        to_delta = torch.stack([rows[:, start : start + self.rank].t() for rows, start in blocks])
        return (
            in_float32(*(t.unflatten(0, (2, -1)) for t in of_scan), to_delta)
            + product_weights(self.out_proj, self.in_proj, self.gate_proj)
            + kernel_weights(self.conv)
            + [packed(to_scan), *in_float32(to_scan.new_zeros(len(to_scan)))]
            + in_float32(self.out_norm.weight, self.out_norm.bias)
        )
