"""Folded modules that the compiled library computes as one, and their weights as it reads them."""

from collections.abc import Callable, Sequence
from itertools import chain
from operator import is_, methodcaller
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from ..compat import autocasts_on_cpu
from ..ops import native

# Where PyTorch keeps the forward hooks of a module.
HOOKS = (
    '_forward_hooks',
    '_forward_hooks_with_kwargs',
    '_forward_hooks_always_called',
    '_forward_pre_hooks',
    '_forward_pre_hooks_with_kwargs',
)


class PacksWeights(nn.Module):
    """A module that keeps its parameters in another form too, for whoever computes with them.

    That form is made anew after a copy, and when a parameter or a layer was replaced, moved or written to.
    Two things leave no trace, and cannot be noticed: a change by ``weight.data.copy_()``, and any change of
    parameters that were made in ``torch.inference_mode()``.
    """

    _derived: tuple[str, ...] = ('_watched',)

    def _forget(self) -> None:
        """Drop what is derived from the parameters; those in ``_derived`` must be set here."""
        self._watched: _Watched | None = None

    def _forget_if_changed(self) -> None:
        watched = self._watched  # another thread may drop it at any time
        if watched is None or not watched.unchanged():
            self._forget()
            self._watched = _Watched(self)

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


class _Watched:
    """The layers and parameters inside a module; looked at in every call, and so in few steps.

    Args:
        module: the module.
    """

    def __init__(self, module: nn.Module) -> None:
        modules = list(module.modules())
        # What an empty one gains is not computed with.
        self._inside = [inside for m in modules for inside in (m._modules, m._parameters) if inside]
        self._norms = [m for m in modules if isinstance(m, nn.LayerNorm)]
        self._found = self._find()
        self._mkldnn = torch.backends.mkldnn.enabled
        self._unwritten = _watch([x for x in self._found if isinstance(x, Tensor)])

    def _find(self) -> list[nn.Module | Tensor | float | None]:
        return [
            *chain.from_iterable(map(methodcaller('values'), self._inside)),
            *(norm.eps for norm in self._norms),
        ]

    def unchanged(self) -> bool:
        """Whether all are still there, and the numbers in them as they were."""
        found = self._find()
        return (
            len(found) == len(self._found)
            and all(map(is_, found, self._found))
            and self._unwritten()
            and torch.backends.mkldnn.enabled == self._mkldnn
        )


def _watch(tensors: Sequence[Tensor]) -> Callable[[], bool]:
    """Tells, when called, whether tensors still have the memory and the numbers that they have now."""
    if native.missing() is None:
        return torch.classes.mmmobilemamba.Watch(tensors).unchanged
    # As long as those of now live, no others can have their addresses.
    now = [(t, t.detach(), _version(t)) for t in tensors]
    return lambda: all(t.data_ptr() == kept.data_ptr() and _version(t) == version for t, kept, version in now)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # those made in inference mode have none


class CompiledModule(PacksWeights):
    """A folded module: on a CPU one object of the compiled library, elsewhere its own layers.

    A subclass says what its layers compute, and which object computes the same. Forward hooks of the
    layers inside run where the layers do.
    """

    _derived = *PacksWeights._derived, '_compiled'

    def __init__(self, layers: nn.Module) -> None:
        """Take over the layers of another module, under their names, and its forward hooks."""
        super().__init__()
        self.training = layers.training
        for name, layer in layers.named_children():
            self.add_module(name, layer)
        for hooks in HOOKS:
            setattr(self, hooks, getattr(layers, hooks))
        self._forget()

    def forward(self, x: Tensor) -> Tensor:
        # Its shape is looked at last: torch.jit.trace would record that, and it is not usable there.
        if not torch.is_grad_enabled() and type(x) is Tensor and native.usable(x) and x.shape[0] > 0:
            self._forget_if_changed()
            compiled = self._compiled  # another thread may drop it at any time
            if compiled is None:
                compiled = self._compiled = self._compile_if_possible()
            dtype, run = compiled
            if autocasts_on_cpu() and {x.dtype, dtype} <= {torch.float32, torch.bfloat16}:
                # Of the type that the layers would give, but computed in that of the weights.
                return run(x.to(dtype)).to(torch.get_autocast_dtype('cpu'))
            if x.dtype == dtype:
                return run(x)
        return self._by_layers(x)

    def _by_layers(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def can_compile(self) -> bool:
        """Whether the compiled library computes layers as these are."""
        raise NotImplementedError

    def add_to(self, layers: Any) -> None:
        """Add what computes the same, with the weights of now, to a ``Layers`` of the compiled library."""
        raise NotImplementedError

    def _compile_if_possible(self) -> tuple[torch.dtype | None, Callable[[Tensor], Tensor]]:
        """The type of the maps that the compiled library takes, if any, and what computes with them."""
        dtypes = {p.dtype for p in self.parameters()}
        if dtypes in ({torch.float32}, {torch.bfloat16}) and self.can_compile:
            layers = torch.classes.mmmobilemamba.Layers()
            self.add_to(layers)
            return dtypes.pop(), layers.run
        return None, self._by_layers

    def _forget(self) -> None:
        super()._forget()
        self._compiled: tuple[torch.dtype | None, Callable[[Tensor], Tensor]] | None = None


def in_float32(*tensors: Tensor) -> list[Tensor]:
    """What the compiled library reads in this type."""
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
