"""The hook on MMEngine's own schedulers."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import ConstantLR, CosineAnnealingLR, LinearLR

from mmmobilemamba.engine import WarmUpCheckHook


def said(schedulers, iterations):
    lines = []
    logger = SimpleNamespace(log=lambda level, text: lines.append(text))
    runner = SimpleNamespace(param_schedulers=schedulers, max_iters=iterations, logger=logger)
    WarmUpCheckHook().before_train(runner)
    return lines


@pytest.fixture
def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


def test_a_training_that_is_mostly_warm_up(optimizer):
    cosine = CosineAnnealingLR(optimizer, T_max=90, begin=0, end=90, by_epoch=False)
    for warm_up in (LinearLR, ConstantLR):
        schedulers = [cosine, warm_up(optimizer, 0.1, by_epoch=False, begin=0, end=500)]
        (line,) = said(schedulers, 96)
        assert 'has 96 iterations' in line and 'param_scheduler.1.end=4' in line
        assert len(said(dict(first=schedulers, second=schedulers), 96)) == 2
        assert not said(schedulers, 1000)
    assert not said([cosine], 10)


def test_schedules_that_are_no_warm_up(optimizer):
    falling = LinearLR(optimizer, 1.0, end_factor=0.01, by_epoch=False, begin=0, end=96)
    by_epoch = LinearLR(optimizer, 0.1, by_epoch=True, begin=0, end=96)
    assert not said([falling], 96) and not said([by_epoch], 96)
    assert not said(None, 96)
