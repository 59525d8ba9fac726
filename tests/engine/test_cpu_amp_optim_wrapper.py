import json
import math
import statistics

import pytest
import torch
from mmengine.registry import OPTIM_WRAPPERS
from tiny import REPOSITORY
from torch import nn

from mmmobilemamba.datasets.demo import make_demo_data
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


def test_float16_scales_the_loss_and_leaves_out_steps_that_overflow():
    model = nn.Linear(4, 3)
    nn.init.zeros_(model.weight)
    wrapper = build(model, dtype='float16')
    before = model.weight.detach().clone()
    x = torch.randn(2, 4)
    with wrapper.optim_context(model):
        y = model(x)
    assert y.dtype == torch.float16
    # Unscaled, this gradient is below the smallest number of float16.
    wrapper.update_params((y * 2.0**-6).float().sum() * 2.0**-20)
    step = (model.weight.detach() - before) * -(2.0**26)
    torch.testing.assert_close(step, 0.1 * x.sum(0).expand(3, 4), rtol=0.2, atol=0.3)
    after, scale = model.weight.detach().clone(), wrapper.loss_scaler.get_scale()
    with wrapper.optim_context(model):
        y = model(x)
    wrapper.update_params(y.float().sum() * 1e30)
    assert torch.equal(model.weight, after)
    assert wrapper.loss_scaler.get_scale() == scale / 2
    assert wrapper.state_dict()['loss_scaler']['scale'] == scale / 2


@pytest.mark.parametrize('before', ['bfloat16', 'float16'])
@pytest.mark.parametrize('after', ['bfloat16', 'float16'])
def test_a_run_resumes_in_the_other_type(before, after):
    state = build(nn.Linear(4, 3), dtype=before).state_dict()
    assert ('loss_scaler' in state) == (before == 'float16')
    for older in (state, {'loss_scaler': {}, **state}):
        wrapper = build(nn.Linear(4, 3), dtype=after)
        wrapper.load_state_dict(older)
        assert wrapper.loss_scaler.is_enabled() == (after == 'float16')


@pytest.mark.parametrize('loss_scale, constant', [(64, True), (dict(init_scale=64.0), False)])
def test_loss_scales_of_a_config(loss_scale, constant):
    model = nn.Linear(4, 3)
    wrapper = build(model, dtype='float16', loss_scale=loss_scale)
    assert wrapper.loss_scaler.get_scale() == 64
    wrapper.update_params(model(torch.randn(2, 4)).sum() * float('inf'))
    assert wrapper.loss_scaler.get_scale() == (64 if constant else 32)


def test_other_types_are_refused():
    with pytest.raises(ValueError, match="loss_scale is 'static'; it is 'dynamic', a number or a dict"):
        build(nn.Linear(1, 1), dtype='float16', loss_scale='static')
    with pytest.raises(ValueError, match="dtype is 'float64'; mixed precision on a CPU is of bfloat16 or"):
        build(nn.Linear(1, 1), dtype='float64')


# float16 is slow on a CPU. At 96 pixels the last maps are two pixels wide, where PyTorch 2.13 computes
# strided convolutions of bfloat16 wrongly on CPUs with AMX.
@pytest.mark.slow
@pytest.mark.parametrize('dtype, size', [('bfloat16', 160), ('float16', 96)])
def test_losses_of_200_steps_on_the_demo_data_are_those_of_float32(tmp_path, tool, dtype, size):
    make_demo_data(tmp_path / 'demo', num_train=400, num_val=8)
    config = REPOSITORY / 'configs/det/demo/retinanet_mobilemamba_demo.py'
    settings = ('train_cfg.max_epochs=1', 'train_dataloader.batch_size=2', 'default_hooks.logger.interval=1')
    settings += (f'train_dataloader.dataset.pipeline.2.scale=({size},{size})',)

    def losses(name, *options):
        found = []
        # Another rounding alone moves the mean loss of one run by up to a tenth.
        for seed in range(3):
            folder = tmp_path / f'{name}-{seed}'
            data = ('--data-root', tmp_path / 'demo', '--work-dir', folder, '--no-validate')
            tool('train.py', config, *data, '--cfg-options', *settings, f'randomness.seed={seed}', *options)
            (log,) = folder.glob('*/vis_data/scalars.json')
            found += [json.loads(line)['loss'] for line in log.read_text().splitlines()]
        return found

    expected = losses('float32')
    # A scale that fits from the start: the search for it, from 65536 down, leaves out steps.
    scale = 'optim_wrapper.loss_scale.init_scale=512.0'
    found = losses(dtype, f'optim_wrapper.dtype={dtype}', scale, '--amp')
    assert len(expected) == len(found) == 3 * 200
    assert all(map(math.isfinite, found))
    print(f'mean loss {statistics.mean(found):.4f} against {statistics.mean(expected):.4f}')
    assert statistics.mean(found) == pytest.approx(statistics.mean(expected), rel=0.05)
