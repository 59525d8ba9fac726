"""Long use leaves memory and speed as they are. Slow: ``python -m pytest -m slow``."""

import statistics
import time
from pathlib import Path

import pytest
import torch
from tiny import TINY

from mmmobilemamba import MobileMamba

STATM = Path('/proc/self/statm')

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not STATM.exists(), reason='the resident memory is read from /proc'),
]


def resident_mib() -> float:
    return int(STATM.read_text().split()[1]) * 4096 / 2**20


def check_flat(step, count: int) -> None:
    """Neither memory nor time of a step grows between the second quarter of the steps and the last."""
    seconds, memory = [], []
    for _ in range(count):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
        memory.append(resident_mib())
    second, last = slice(count // 4, count // 2), slice(-count // 4, None)
    grown = statistics.median(memory[last]) - statistics.median(memory[second])
    slower = statistics.median(seconds[last]) / statistics.median(seconds[second])
    print(f'{count} steps: memory grew by {grown:.1f} MiB, the time of a step by a factor of {slower:.2f}')
    assert grown < 5
    assert slower < 1.3


@pytest.mark.parametrize('deploy', [False, True], ids=['as trained', 'deployed'])
def test_forward_passes(deploy):
    model, sizes = MobileMamba(TINY).eval(), iter(range(10**6))
    if deploy:
        model.switch_to_deploy()

    @torch.inference_mode()
    def step():
        # Sizes change, as they do in detection.
        model(torch.randn(1, 3, 64, 48 + 16 * (next(sizes) % 5)))

    check_flat(step, 2000)


def test_training_steps():
    model = MobileMamba(TINY).train()
    optimizer = torch.optim.AdamW(model.parameters())
    images = torch.randn(2, 3, 64, 64)

    def step():
        optimizer.zero_grad()
        sum(y.square().mean() for y in model(images)).backward()
        optimizer.step()

    check_flat(step, 500)
