import pytest
import torch
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from mmmobilemamba.engine import CPUAmpOptimWrapper


def build(model: nn.Module, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return OPTIM_WRAPPERS.build(dict(type='CPUAmpOptimWrapper', optimizer=optimizer, **options))


def test_forward_in_bfloat16_and_step_in_float32():
    model = nn.Linear(4, 3)
    wrapper = build(model)
    assert isinstance(wrapper, CPUAmpOptimWrapper)
    before = model.weight.detach().clone()
    x = torch.randn(2, 4)
    with wrapper.optim_context(model):
        y = model(x)
    assert y.dtype == torch.bfloat16
    wrapper.update_params(y.float().sum())
    assert model.weight.dtype == torch.float32
    torch.testing.assert_close(model.weight, before - 0.1 * x.sum(0), rtol=0.02, atol=0.01)
    assert model(x).dtype == torch.float32


def test_other_types_are_refused():
    with pytest.raises(ValueError, match="dtype is 'float16'; mixed precision on a CPU is of bfloat16"):
        build(nn.Linear(1, 1), dtype='float16')
