"""The convolution of a folded network, with what follows it in the same pass over memory."""

import copy
from functools import cache

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..compat import autocasts_on_cpu
from ..ops import native
from .compiled import PacksWeights

ACTIVATIONS = {'none': lambda x: x, 'relu': F.relu_, 'swish': lambda x: F.silu(x, inplace=True)}
MAX_SHAPES = 64


@cache
def _onednn_dtypes() -> tuple[torch.dtype, ...]:
    """Data types that this machine and this torch run fused convolutions in."""
    needed = '_convolution_pointwise', '_get_mkldnn_serialized_md'
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, n) for n in needed):
        return ()
    bfloat16 = (torch.bfloat16,) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ()
    return torch.float32, *bfloat16


class FusedConv2d(PacksWeights, nn.Conv2d):
    """``activation(conv(x))`` or ``conv(x) + add``, for inference.

    On a CPU, oneDNN runs it as one operation whose weights are brought into its own layout once for each
    shape of input, not at every call as ``F.conv2d`` does, which tells where there are more weights than
    pixels. Under torch.compile and torch.export, which do this themselves, and where it cannot be done, it
    is the plain convolution.
    """

    _derived = *PacksWeights._derived, '_packed', '_layouts'

    def __init__(self, conv: nn.Conv2d, activation: str = 'none') -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            device='meta',
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.activation = activation
        self._forget()

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        if not self._runs_in_onednn(x) or (add is not None and add.dtype != x.dtype):
            y = ACTIVATIONS[self.activation](super().forward(x))
            return y if add is None else y + add
        self._forget_if_changed()
        weight = self._packed.get(x.shape)
        if weight is None:
            weight = self._pack(x.shape)
        if add is None:
            return torch.ops.mkldnn._convolution_pointwise(
                x, weight, self.bias, *self._geometry, self.activation, [], None
            )
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, add, weight, self.bias, *self._geometry, 'add', 1.0, None, [], None
        )

    def _pack(self, shape: torch.Size) -> Tensor:
        """The weights in the layout for this shape of input; another one may be fifty times as slow.

        Most shapes have the same few layouts, and share their tensors.
        """
        if len(self._packed) >= MAX_SHAPES:
            self._packed, self._layouts = {}, {}
        packed = torch.ops.mkldnn._reorder_convolution_weight(
            self.weight.detach(), *self._geometry, list(shape)
        )
        layout = torch.ops.mkldnn._get_mkldnn_serialized_md(packed).numpy().tobytes()
        # Returned as it is, for another thread may empty the two at any time.
        self._packed[shape] = packed = self._layouts.setdefault(layout, packed)
        return packed

    def chunk(self, *activations: str) -> list['FusedConv2d']:
        """Convolutions that each compute an equal share of the output channels; not if depth-wise."""
        conv = copy.deepcopy(self)
        conv.out_channels //= len(activations)
        parts = []
        for i, activation in enumerate(activations):
            for name, tensor in self.named_parameters():
                part = tensor.detach().chunk(len(activations))[i].clone()
                setattr(conv, name, nn.Parameter(part))
            parts.append(FusedConv2d(conv, activation))
        return parts

    @property
    def _geometry(self) -> tuple:
        return self.padding, self.stride, self.dilation, self.groups

    def _runs_in_onednn(self, x: Tensor) -> bool:
        dtype = x.dtype
        return (
            x.device.type == 'cpu'
            and not torch.is_grad_enabled()
            and not autocasts_on_cpu()
            and not native.needs_plain_operators(x)
            and dtype == self.weight.dtype
            and dtype in _onednn_dtypes()
            and torch.backends.mkldnn.enabled
        )

    def _forget(self) -> None:
        super()._forget()
        self._packed: dict[torch.Size, Tensor] = {}
        self._layouts: dict[bytes, Tensor] = {}
