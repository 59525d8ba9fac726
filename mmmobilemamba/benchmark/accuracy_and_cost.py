"""One point of a high-resolution evaluation: the metric from a test run, then the cost of a prediction."""

import pickle
from functools import partial
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings
from torch import Tensor, nn

from ..engine import build_runner, deploy_for_test
from ..evaluation.load import device_name, load_model
from ..evaluation.resolution import SizeResult, scale_name, set_mode, set_test_scale
from .complexity import measure_complexity
from .memory import peak_memory
from .timing import inference, interleave, stopwatch


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
) -> SizeResult:
    """Test a model at one size and measure what a prediction costs there.

    The cost is that of the first test image at batch size 1.

    Args:
        cfg: Config made ready for testing (:func:`mmmobilemamba.engine.load_for_testing`).
        scale: (height, width) to resize to.
        mode: 'whole' or 'slide'.
        windows: ``crop`` and ``stride`` for :func:`set_mode`.
        deploy: Fold the backbone first.
        repeats: How often to time.
    """
    set_test_scale(cfg, scale)
    set_mode(cfg, mode, **windows)
    name = scale_name(scale)
    # Loggers and visualizers are shared between runs of one name.
    cfg.experiment_name = f'{cfg.get("experiment_name", "resolution")}_{name}_{mode}'
    if deploy:
        deploy_for_test(cfg)
    runner = build_runner(cfg)
    metrics = {key: float(value) for key, value in runner.test().items()}
    return SizeResult(scale=scale, mode=mode, metrics=metrics, **measure_cost(runner, deploy, repeats))


def measure_cost(runner: Runner, deploy: bool, repeats: int) -> dict[str, Any]:
    """Cost of predicting the first test image; keys as the fields of :class:`SizeResult`."""
    model = runner.model.eval()
    dataset = runner.test_dataloader.dataset
    data = runner.test_dataloader.collate_fn([dataset[0]])
    data = model.data_preprocessor(data, False)
    # Pickled before predictions are added to it.
    make = partial(make_prediction, runner.cfg, deploy, pickle.dumps(data))
    inputs = data['inputs']
    prediction = Prediction(model, data['data_samples']).eval()
    with torch.no_grad():
        complexity = measure_complexity(prediction, inputs)
    run = {'prediction': inference(prediction, inputs)}
    timing = interleave(run, stopwatch(inputs.device), range(repeats + 1), warmup=1)['prediction']
    memory = peak_memory(make, inputs.device, 'A prediction at this size')
    return dict(
        input_size=tuple(inputs.shape[-2:]),
        gflops=complexity.flops / 1e9,
        scan_gflops=complexity.scan_flops / 1e9,
        peak_memory_mib=None if memory is None else memory / 2**20,
        latency_ms=timing.median * 1e3,
        device=device_name(inputs.device),
    )


def make_prediction(cfg: Config, deploy: bool, pickled: bytes) -> tuple[Prediction, Tensor]:
    """The model of a config with the weights of its ``load_from``, and an image, in any process."""
    if cfg.get('custom_imports'):
        import_modules_from_strings(**cfg.custom_imports)
    data = pickle.loads(pickled)
    inputs = data['inputs']
    model = load_model(cfg, cfg.load_from, inputs.device, deploy, classes_from_data=True)
    return Prediction(model, data['data_samples']).eval(), inputs
