"""Parameters and multiply-adds of a model."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from ..layers import SS2D, WaveletConv
from ..ops import native


@dataclass(frozen=True)
class Complexity:
    """What one forward pass costs, whatever the machine.

    Attributes:
        parameters: number of parameters.
        flops: multiply-adds of convolutions and matrix products, as the field counts "FLOPs"; Haar
            transforms count as the convolutions that they are, though they are computed by additions.
        scan_flops: those of the selective scans, 9·B·L·D·N + B·D·L for each direction.
        batch_norm_flops: one per element that a batch normalisation scales, which publications add
            where they count an un-fused network.
    """

    parameters: int
    flops: int
    scan_flops: int
    batch_norm_flops: int = 0

    @property
    def total(self) -> int:
        """Multiply-adds with the scans, and without batch normalisations, which folding removes."""
        return self.flops + self.scan_flops


def scan_flops(batch: int, length: int, channels: int, states: int) -> int:
    """Operations of one selective scan in one direction, as papers on Mamba count them."""
    return 9 * batch * length * channels * states + batch * channels * length


def haar_flops(batch: int, channels: int, height: int, width: int, levels: int = 1) -> int:
    """Multiply-adds of Haar transforms and their inverses: per element, four sub-band values of each."""
    total = 0
    for _ in range(levels):
        # An odd side is padded by one.
        height, width = (height + 1) // 2, (width + 1) // 2
        total += 2 * batch * 4 * channels * height * width * 4
    return total


@torch.no_grad()
def measure_complexity(
    model: nn.Module, inputs: Any, forward: Callable[..., Any] | None = None
) -> Complexity:
    """Count parameters and multiply-adds of one forward pass, which is run.

    Every backend of the scan, and a folded backbone, give the same count, but that folding takes the
    parameters and the multiply-adds of the batch norms away. Activations and sums are not counted.

    Args:
        model: any module, in the mode and on the device it is to run in.
        inputs: its argument, or a tuple of its arguments.
        forward: what to call instead of the model, e.g. ``model.predict``.
    """
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    counts = _HookedCounts()
    with ExitStack() as stack:
        for module in model.modules():
            for kind, hook in counts.hooks.items():
                if isinstance(module, kind):
                    stack.callback(module.register_forward_hook(hook).remove)
        # The counter knows PyTorch's own operators only.
        stack.enter_context(native.avoided())
        counter = stack.enter_context(FlopCounterMode(display=False))
        (forward or model)(*arguments)
    return Complexity(
        parameters=sum(p.numel() for p in model.parameters()),
        flops=counter.get_total_flops() // 2 + counts.haar - counts.uncounted,
        scan_flops=counts.scan,
        batch_norm_flops=counts.batch_norm,
    )


class _HookedCounts:
    """What the operators that run do not tell, from the modules that run."""

    def __init__(self) -> None:
        self.scan = self.haar = self.batch_norm = self.uncounted = 0
        self.hooks: dict[type[nn.Module], Callable[..., None]] = {
            SS2D: self._count_scan,
            WaveletConv: self._count_haar,
            _BatchNorm: self._count_batch_norm,
        }

    def _count_scan(self, module: SS2D, _: Any, output: Tensor) -> None:
        pixels = output.shape[0] * output.shape[2] * output.shape[3]
        inner = module.out_norm.normalized_shape[0]
        self.scan += 2 * scan_flops(1, pixels, inner, module.d_state)
        # The weight that projects Δ is block-diagonal: half of the products have a factor of zero.
        self.uncounted += 2 * pixels * module.rank * inner

    def _count_haar(self, module: WaveletConv, _: Any, output: Tensor) -> None:
        if module.analysis.shape[-1] == 2:
            self.haar += haar_flops(*output.shape, levels=len(module.convs))

    def _count_batch_norm(self, _: _BatchNorm, __: Any, output: Tensor) -> None:
        self.batch_norm += output.numel()
