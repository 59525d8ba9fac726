"""The convolution of a folded network, with what follows it in the same pass over memory."""

import copy
from functools import cache
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from ..compat import has_tangent, is_compiling
from ..ops.depthwise import ACTIVATION_NUMBERS, ACTIVATIONS, runs_natively

MAX_SHAPES = 64


@cache
def _onednn_dtypes() -> tuple[torch.dtype, ...]:
    """Data types that this machine and this torch run fused convolutions in."""
    needed = '_convolution_pointwise', '_linear_pointwise', '_get_mkldnn_serialized_md'
    if not torch.backends.mkldnn.is_available() or not all(hasattr(torch.ops.mkldnn, n) for n in needed):
        return ()
    bfloat16 = (torch.bfloat16,) if torch.ops.mkldnn._is_mkldnn_bf16_supported() else ()
    return torch.float32, *bfloat16


@cache
def _has_mkl_linear() -> bool:
    names = ('_mkl_linear', '_mkl_reorder_linear_weight')
    return torch.backends.mkl.is_available() and all(hasattr(torch.ops.mkl, name) for name in names)


class FusedConv2d(nn.Conv2d):
    """``activation(conv(x))`` or ``conv(x) + add``, for inference.

    On a CPU, oneDNN runs it as one operation whose weights are brought into its own layout once for each
    shape of input, not at every call as ``F.conv2d`` does, which tells where there are more weights than
    pixels. Under torch.compile and torch.export, which do this themselves, and where it cannot be done, it
    is the plain convolution.
    """

    # What is derived from the parameters: made anew after a copy, or when the weight has changed.
    _derived = '_packed', '_layouts', '_products', '_in_float', '_version'

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
        if not self._runs_in_onednn(x):
            y = ACTIVATIONS[self.activation](super().forward(x))
            return y if add is None else y + add
        self._forget_if_changed()
        return self._compute(x, add)

    def _compute(self, x: Tensor, add: Tensor | None) -> Tensor:
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
        packed = self._reordered_for(shape)
        layout = torch.ops.mkldnn._get_mkldnn_serialized_md(packed).numpy().tobytes()
        # Returned as it is, for another thread may empty the two at any time.
        self._packed[shape] = packed = self._layouts.setdefault(layout, packed)
        return packed

    def _reordered_for(self, shape: torch.Size) -> Tensor:
        return torch.ops.mkldnn._reorder_convolution_weight(
            self.weight.detach(), *self._geometry, list(shape)
        )

    def chunk(self, *activations: str) -> list['FusedConv2d']:
        """Convolutions that each compute an equal share of the output channels; not if depth-wise."""
        conv = copy.deepcopy(self)
        conv.out_channels //= len(activations)
        parts = []
        for i, activation in enumerate(activations):
            for name, tensor in self.named_parameters():
                part = tensor.detach().chunk(len(activations))[i].clone()
                setattr(conv, name, nn.Parameter(part))
            parts.append(fused_conv(conv, activation))
        return parts

    @property
    def _geometry(self) -> tuple:
        return self.padding, self.stride, self.dilation, self.groups

    def _runs_in_onednn(self, x: Tensor) -> bool:
        if is_compiling() or torch.jit.is_tracing() or torch.is_grad_enabled() or has_tangent(x):
            return False
        dtype = x.dtype
        return (
            x.device.type == 'cpu'
            and dtype == self._parameters['weight'].dtype
            and dtype in _onednn_dtypes()
            and torch.backends.mkldnn.enabled
        )

    def _apply(self, *args: Any, **kwargs: Any) -> 'FusedConv2d':
        self._forget()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._forget()
        super()._load_from_state_dict(*args)

    def _forget_if_changed(self) -> None:
        """A change by ``weight.data.copy_()`` leaves no trace, and cannot be noticed."""
        weight = self._parameters['weight']  # a third of the time that self.weight takes
        version = weight.data_ptr(), weight.is_inference() or weight._version
        if version != self._version:
            self._forget()
            self._version = version

    def _forget(self) -> None:
        self._version: tuple[int, int] | None = None
        self._packed: dict[torch.Size, Tensor] = {}
        self._layouts: dict[bytes, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in self._derived}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()


class FusedDepthwiseConv2d(FusedConv2d):
    """The same for a depth-wise convolution, as many pixels out as in, on a CPU by our own operator."""

    def __init__(self, conv: nn.Conv2d, activation: str = 'none') -> None:
        super().__init__(conv, activation)
        # As the operator reads it: in memory (k, k, C).
        weight = self.weight.data.permute(2, 3, 1, 0).contiguous()
        self.weight.data = weight.permute(3, 2, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not runs_natively(x, self.weight):
            return super().forward(x)
        self._forget_if_changed()
        in_float = self._in_float
        if in_float is None:
            in_float = self.weight.float(), None if self.bias is None else self.bias.float()
            self._in_float = in_float
        number = ACTIVATION_NUMBERS[self.activation]
        return torch.ops.mmmobilemamba.depthwise_conv2d(x, *in_float, number)

    def _forget(self) -> None:
        super()._forget()
        self._in_float: tuple[Tensor, Tensor | None] | None = None


class FusedPointwiseConv2d(FusedConv2d):
    """The same for a 1x1 convolution, as a product of matrices, in float32 over few pixels by MKL.

    OneDNN's matrix product is faster than its convolution, MKL does less besides the product.
    """

    MAX_PIXELS = 2048
    MAX_PRODUCTS = 2  # each keeps another copy of the weights

    def _compute(self, x: Tensor, add: Tensor | None) -> Tensor:
        x_, bias = x.permute(0, 2, 3, 1), self._parameters['bias']
        pixels = x_.shape[:3].numel()
        product = self._products.get(pixels)
        if product is None and self._takes(pixels):
            weight = self.weight.detach().flatten(1)
            packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, pixels)
            self._products[pixels] = product = packed, weight
        if product is not None:
            y = torch.ops.mkl._mkl_linear(x_, *product, bias, pixels).permute(0, 3, 1, 2)
            return ACTIVATIONS[self.activation](y) if add is None else y.add_(add)
        rows = x_.flatten(0, 2)
        weight = self._packed.get(rows.shape)
        if weight is None:
            weight = self._pack(rows.shape)
        if add is None:
            y = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, self.activation, [], None)
        else:
            add = add.permute(0, 2, 3, 1).flatten(0, 2)
            y = torch.ops.mkldnn._linear_pointwise.binary(rows, add, weight, bias, 'add')
        return y.unflatten(0, x_.shape[:3]).permute(0, 3, 1, 2)

    def _reordered_for(self, shape: torch.Size) -> Tensor:
        return torch.ops.mkldnn._reorder_linear_weight(self.weight.detach().flatten(1), shape[0])

    def _takes(self, pixels: int) -> bool:
        return (
            0 < pixels <= self.MAX_PIXELS
            and len(self._products) < self.MAX_PRODUCTS
            and self.weight.dtype == torch.float32
            and _has_mkl_linear()
        )

    def _forget(self) -> None:
        super()._forget()
        self._products: dict[int, tuple[Tensor, Tensor]] = {}


def fused_conv(conv: nn.Conv2d, activation: str = 'none') -> FusedConv2d:
    """The convolution, which keeps its parameters, with what follows it."""
    (height, width), padding = conv.kernel_size, (conv.kernel_size[0] // 2,) * 2
    if height != width or (conv.padding, conv.stride, conv.dilation) != (padding, (1, 1), (1, 1)):
        return FusedConv2d(conv, activation)
    if conv.groups == conv.in_channels == conv.out_channels:
        return FusedDepthwiseConv2d(conv, activation)
    pointwise = height == conv.groups == 1
    return (FusedPointwiseConv2d if pointwise else FusedConv2d)(conv, activation)
