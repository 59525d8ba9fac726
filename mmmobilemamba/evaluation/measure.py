"""One point of a high-resolution evaluation: the metric from a test run, then the cost of a prediction."""

from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor, nn

from ..benchmark import measure_complexity
from ..benchmark.timing import inference, interleave, stopwatch
from ..deploy import switch_to_deploy
from ..engine import build_runner
from .cost import device_name, measure_peak_memory
from .resolution import Result, set_mode, set_test_scale


class Prediction(nn.Module):
    """What a model does with one prepared image, as a module whose cost can be measured."""

    def __init__(self, model: nn.Module, data_samples: list) -> None:
        super().__init__()
        self.model = model
        self.data_samples = data_samples

    def forward(self, inputs: Tensor) -> list[Any]:
        return self.model(inputs, self.data_samples, mode='predict')


def evaluate_at(
    cfg: Config,
    scale: tuple[int, int],
    mode: str,
    windows: dict[str, Any],
    deploy: bool = False,
    repeats: int = 10,
) -> Result:
    """Test a model at one size and measure what a prediction costs there.

    The cost is that of the first test image at batch size 1.

    Args:
        cfg: Config made ready for testing (:func:`mmmobilemamba.engine.load_for_testing`).
        scale: (width, height) to resize to.
        mode: 'whole' or 'slide'.
        windows: ``crop`` and ``stride`` for :func:`set_mode`.
        deploy: Fold the backbone first.
        repeats: How often to time.
    """
    set_test_scale(cfg, scale)
    set_mode(cfg, mode, **windows)
    name = f'{scale[0]}x{scale[1]}'
    # Loggers and visualizers are shared between runs of one name.
    cfg.experiment_name = f'{cfg.get("experiment_name", "resolution")}_{name}_{mode}'
    runner = build_runner(cfg)
    runner.load_or_resume()
    if deploy:
        switch_to_deploy(runner.model)
    metrics = {key: float(value) for key, value in runner.test().items()}
    return Result(scale=name, mode=mode, metrics=metrics, **measure_cost(runner, repeats))


@torch.no_grad()
def measure_cost(runner: Runner, repeats: int) -> dict[str, Any]:
    """Cost of predicting the first test image; keys as the fields of :class:`Result`."""
    model = runner.model.eval()
    dataset = runner.test_dataloader.dataset
    data = runner.test_dataloader.collate_fn([dataset[0]])
    data = model.data_preprocessor(data, False)
    inputs = data['inputs']
    prediction = Prediction(model, data['data_samples']).eval()
    complexity = measure_complexity(prediction, inputs)
    run = {'prediction': inference(prediction, inputs)}
    timing = interleave(run, stopwatch(inputs.device), range(repeats + 1), warmup=1)['prediction']
    return dict(
        input_size=tuple(inputs.shape[-2:]),
        gflops=complexity.flops / 1e9,
        scan_gflops=complexity.scan_flops / 1e9,
        peak_memory_mib=measure_peak_memory(prediction, inputs) / 2**20,
        latency_ms=timing.median * 1e3,
        device=device_name(inputs.device),
    )
