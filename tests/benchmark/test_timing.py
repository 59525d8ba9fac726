import time

import pytest
import torch
from torch import nn

from mmmobilemamba.benchmark.timing import (
    Timing,
    inference,
    interleave,
    matmul,
    matmul_size,
    stopwatch,
    training_step,
)

CPU = torch.device('cpu')


class Clock:
    """A clock that stands still but for what a run adds to it."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(time, 'perf_counter', lambda: self.now)

    def run(self, *durations):
        remaining = iter(durations)

        def step():
            self.now += next(remaining)

        return step


def test_quartiles():
    assert Timing.of([3.0, 1.0, 5.0, 2.0, 4.0]) == Timing(3.0, 2.0, 4.0)
    assert Timing.of([7.0]) == Timing(7.0, 7.0, 7.0)


def test_rounds_are_interleaved_and_what_warms_up_does_not_count(monkeypatch):
    clock = Clock(monkeypatch)
    order = []

    def noted(name, run):
        return lambda: (order.append(name), run())

    runs = dict(
        a=noted('a', clock.run(70, 50, 70, 1, 70, 2, 70, 3)),
        b=noted('b', clock.run(70, 90, 70, 10, 70, 30, 70, 20)),
    )
    timings = interleave(runs, stopwatch(CPU), range(4), warmup=1)
    assert order == ['a', 'a', 'b', 'b'] * 4
    assert timings == dict(a=Timing(2, 1.5, 2.5), b=Timing(20, 15, 25))


def test_gpu_time_is_that_of_its_events(monkeypatch):
    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            calls.append('record')

        def elapsed_time(self, end):
            assert isinstance(end, Event)
            return 12.0

    calls = []
    monkeypatch.setattr(torch.cuda, 'Event', Event)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: calls.append('synchronize'))
    seconds = stopwatch(torch.device('cuda'))(lambda: calls.append('run'))
    assert seconds == 0.012
    assert calls == ['synchronize', 'record', 'run', 'record', 'synchronize']


def test_matrices_are_as_big_as_the_limit_allows(monkeypatch):
    clock = Clock(monkeypatch)
    sides = []

    def fake_matmul(size, dtype, device):
        sides.append(size)
        # 1e9 multiply-adds per second
        return clock.run(*2 * [size**3 / 1e9])

    monkeypatch.setattr('mmmobilemamba.benchmark.timing.matmul', fake_matmul)
    assert matmul_size(torch.float32, CPU, limit=1.1) == 1024
    assert matmul_size(torch.float32, CPU, limit=0.001) == 256
    assert matmul_size(torch.float32, CPU, limit=1e3) == 2048
    assert max(sides) <= 1024


def test_matmul_multiplies_the_whole():
    assert matmul(8, torch.bfloat16, CPU)().dtype == torch.bfloat16
    assert matmul(8, torch.float32, CPU)().shape == (8, 8)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_training_step_reaches_every_parameter(dtype):
    class TwoOutputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            seen.append(torch.is_autocast_enabled('cpu'))
            return dict(first=self.first(x), rest=[(self.second(x),)])

    seen, gradients = [], []
    model = TwoOutputs()
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: gradients.append(p.grad.abs().sum()))
    training_step(model, torch.rand(1, 3, 4, 4), dtype)()
    assert len(gradients) == 4 and all(g > 0 for g in gradients)
    assert seen == [dtype == torch.bfloat16]
    assert all(p.grad is None for p in model.parameters())


def test_inference_keeps_no_graph():
    recorded = []
    model = nn.Conv2d(3, 4, 1)
    model.register_forward_hook(lambda _, __, out: recorded.append(out.requires_grad))
    inference(model, torch.rand(1, 3, 2, 2))()
    assert recorded == [False]
