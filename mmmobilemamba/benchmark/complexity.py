"""Parameters and multiply-adds of a model."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from ..layers import SS2D


@dataclass(frozen=True)
class Complexity:
    """What one forward pass costs, whatever the machine.

    Attributes:
        parameters: number of parameters.
        flops: multiply-adds of convolutions and matrix products, as the field counts "FLOPs".
        scan_flops: those of the selective scans, 9·B·L·D·N + B·D·L for each direction.
    """

    parameters: int
    flops: int
    scan_flops: int

    @property
    def total(self) -> int:
        """Multiply-adds with the scans."""
        return self.flops + self.scan_flops


def scan_flops(batch: int, length: int, channels: int, states: int) -> int:
    """Operations of one selective scan in one direction, as papers on Mamba count them."""
    return 9 * batch * length * channels * states + batch * channels * length


@torch.no_grad()
def measure_complexity(model: nn.Module, inputs: Any, forward: Callable[..., Any] | None = None) -> Complexity:
    """Count parameters and multiply-adds of one forward pass, which is run.

    Every backend of the scan, and a folded backbone, give the same count, but that folding takes the
    parameters of the batch norms away. Batch norms, activations and sums are not counted.

    Args:
        model: any module, in the mode and on the device it is to run in.
        inputs: its argument, or a tuple of its arguments.
        forward: what to call instead of the model, e.g. ``model.predict``.
    """
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    scans: list[tuple[int, int]] = []

    def count_scan(module: SS2D, _: Any, output: Tensor) -> None:
        pixels = output.shape[0] * output.shape[2] * output.shape[3]
        inner = module.out_norm.normalized_shape[0]
        # The weight that projects Δ is block-diagonal: half of the products have a factor of zero.
        scans.append((2 * scan_flops(1, pixels, inner, module.d_state), 2 * pixels * module.rank * inner))

    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, SS2D):
                stack.callback(module.register_forward_hook(count_scan).remove)
        counter = stack.enter_context(FlopCounterMode(display=False, custom_mapping=_onednn_formulas()))
        (forward or model)(*arguments)
    return Complexity(
        parameters=sum(p.numel() for p in model.parameters()),
        flops=counter.get_total_flops() // 2 - sum(zeros for _, zeros in scans),
        scan_flops=sum(flops for flops, _ in scans),
    )


def _onednn_formulas() -> dict[Any, Callable[..., int]]:
    """What :class:`FusedConv2d` calls on a CPU, (x, weight, …) or (x, add, weight, …)."""

    def count(x: tuple, *rest: Any, out_shape: tuple, **_: Any) -> int:
        # In the first form a list, the padding, comes third.
        weight = rest[0] if isinstance(rest[2], list) else rest[1]
        return conv_flop_count(x, weight, out_shape)

    op = getattr(torch.ops.mkldnn, '_convolution_pointwise', None)
    return {} if op is None else {op: count}
