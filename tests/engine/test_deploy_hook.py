"""The hook that folds the network before a test."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import EMAHook
from tiny import TINY, as_trained
from torch import nn

from mmmobilemamba import MobileMamba
from mmmobilemamba.engine.deploy_hook import DeployHook


@pytest.mark.parametrize('update_buffers', [False, True])
def test_averaged_weights_are_folded_too(update_buffers):
    """EMAHook swaps the model's tensors with those of its own copy, in their order."""
    backbone = as_trained(MobileMamba(TINY))
    x = torch.randn(2, 3, 50, 40)
    with torch.no_grad():
        expected = backbone(x)
    ema = EMAHook(update_buffers=update_buffers)
    deploy = DeployHook()
    runner = SimpleNamespace(model=nn.Sequential(backbone), hooks=[ema, deploy])
    ema.before_run(runner)
    deploy.before_test(runner)
    ema.before_test_epoch(runner)
    with torch.no_grad():
        actual = runner.model(x)
    ema.after_test_epoch(runner)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
