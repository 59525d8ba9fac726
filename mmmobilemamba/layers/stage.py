"""A stage: the blocks of one resolution, behind the down-sampling to it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..compat import is_compiling
from .compiled import CompiledModule


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """The second forward of a checkpointed block must not update the BN statistics a second time."""
    norms = [m for m in block.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    before = [(m, m.momentum, m.num_batches_tracked.clone()) for m in norms]
    for module in norms:
        module.momentum = 0.0
    try:
        yield
    finally:
        for module, momentum, count in before:
            module.momentum = momentum
            module.num_batches_tracked.copy_(count)


class Stage(nn.Module):
    """Down-sampling (none in the first stage), then the blocks."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], with_cp: bool) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        for block in self.blocks:
            if self.with_cp and torch.is_grad_enabled():
                # torch.compile leaves out of the second forward what changes the state.
                options = {}
                if not is_compiling():
                    options['context_fn'] = lambda block=block: (nullcontext(), _statistics_kept(block))
                x = checkpoint(block, x, use_reentrant=False, **options)
            else:
                x = block(x)
        return x

    def fuse(self) -> 'FoldedStage':
        """The same for inference."""
        return FoldedStage(self)


class FoldedStage(CompiledModule):
    """A :class:`Stage` of folded layers."""

    @property
    def _parts(self) -> tuple[nn.Module, ...]:
        return self.downsample, *self.blocks

    def forward(self, x: Tensor) -> Tensor:
        # Hooks of the blocks are expected to run; one by one, the blocks are compiled as well.
        if any(part._forward_pre_hooks or part._forward_hooks for part in self._parts):
            return self._by_layers(x)
        return super().forward(x)

    def _by_layers(self, x: Tensor) -> Tensor:
        for part in self._parts:
            x = part(x)
        return x

    @property
    def _computing_parts(self) -> list[nn.Module]:
        return [part for part in self._parts if not isinstance(part, nn.Identity)]

    @property
    def can_compile(self) -> bool:
        return all(isinstance(part, CompiledModule) and part.can_compile for part in self._computing_parts)

    def add_to(self, layers: Any) -> None:
        for part in self._computing_parts:
            part.add_to(layers)
