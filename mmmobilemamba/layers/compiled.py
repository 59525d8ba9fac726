"""Folded modules that one compiled operator computes, and their weights as that operator reads them."""

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from ..ops import native

# Of depth-wise convolutions: a vector of AVX-512, and the windows that are compiled.
MIN_CHANNELS, KERNEL_SIZES = 16, (3, 5, 7)


class PacksWeights(nn.Module):
    """A module that keeps its parameters in another form too, for whoever computes with them.

    That form is made anew after a copy, and when a parameter or a layer was replaced, moved or written to.
    Two things leave no trace, and cannot be noticed: a change by ``weight.data.copy_()``, and any change of
    parameters that were made in ``torch.inference_mode()``.
    """

    _derived: tuple[str, ...] = ('_watched',)

    def _forget(self) -> None:
        """Drop what is derived from the parameters; those in ``_derived`` must be set here."""
        self._watched: tuple[list[dict], list[dict], list[Any], list[Tensor]] | None = None

    def _forget_if_changed(self) -> None:
        watched = self._watched  # another thread may drop it at any time
        if watched is None or _state(*watched[:2])[0] != watched[2]:
            self._forget()
            modules = list(self.modules())
            inside = [m._modules for m in modules], [m._parameters for m in modules]
            state, tensors = _state(*inside)
            # As long as these live, no others can have their addresses.
            self._watched = *inside, state, [t.detach() for t in tensors]

    def _apply(self, *args: Any, **kwargs: Any) -> 'PacksWeights':
        self._forget()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._forget()
        super()._load_from_state_dict(*args)

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in self._derived}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()


def _state(layers: list[dict], parameters: list[dict]) -> tuple[list[Any], list[Tensor]]:
    """What is another after a change, and the parameters; made in every call, and so of few objects."""
    tensors = [t for inside in parameters for t in inside.values() if t is not None]
    state: list[Any] = [layer for inside in layers for layer in inside.values()]
    state += [t.data_ptr() for t in tensors]
    try:
        state += [t._version for t in tensors]
    except RuntimeError:  # those made in inference mode have none
        state += [0 if t.is_inference() else t._version for t in tensors]
    state.append(torch.backends.mkldnn.enabled)
    return state, tensors


class CompiledModule(PacksWeights):
    """A folded module: on a CPU one operator of the compiled library, elsewhere its own layers.

    A subclass says what its layers compute, which operator computes the same, and what weights that
    one takes. Forward hooks of the layers inside run where the layers do.
    """

    _derived = *PacksWeights._derived, '_packed'

    def __init__(self, layers: nn.Module) -> None:
        """Take over the layers of another module, under their names."""
        super().__init__()
        self.training = layers.training
        for name, layer in layers.named_children():
            self.add_module(name, layer)
        self._forget()

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() and type(x) is Tensor and native.usable(x):
            self._forget_if_changed()
            packed = self._packed  # another thread may drop it at any time
            if packed is None:
                packed = self._packed = self._pack_if_possible()
            dtype, weights = packed
            if x.dtype == dtype:
                return self._by_operator(x, weights)
        return self._by_layers(x)

    def _by_layers(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _by_operator(self, x: Tensor, weights: list[Tensor]) -> Tensor:
        raise NotImplementedError

    @property
    def _has_operator(self) -> bool:
        """Whether there is an operator for layers as these are."""
        raise NotImplementedError

    def _pack(self) -> list[Tensor]:
        """The weights as the operator reads them."""
        raise NotImplementedError

    def _pack_if_possible(self) -> tuple[torch.dtype | None, list[Tensor]]:
        """The type of the maps that the operator takes, if any, and its weights."""
        dtypes = {p.dtype for p in self.parameters()}
        if dtypes in ({torch.float32}, {torch.bfloat16}) and self._has_operator:
            return dtypes.pop(), self._pack()
        return None, []

    def _forget(self) -> None:
        super()._forget()
        self._packed: tuple[torch.dtype | None, list[Tensor]] | None = None


def in_float32(*tensors: Tensor) -> list[Tensor]:
    """What the operators read in this type."""
    return [t.detach().float().contiguous() for t in tensors]


def product_weights(*convs: nn.Conv2d) -> list[Tensor]:
    """Packed weights and biases of 1x1 convolutions."""
    return [t for conv in convs for t in (packed(conv.weight), *in_float32(conv.bias))]


def packed(weight: Tensor) -> Tensor:
    """The weight of a product (N, K), or of a convolution (N, ...) that is one."""
    return torch.ops.mmmobilemamba.pack_weights(weight.detach().flatten(1))


def kernel_weights(conv: nn.Conv2d) -> list[Tensor]:
    """Kernels (k, k, C) and bias (C) of a depth-wise convolution."""
    bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias
    return in_float32(conv.weight[:, 0].permute(1, 2, 0), bias)
