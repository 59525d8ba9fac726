import copy
import pickle

import numpy as np
import pytest
import torch
from golden import GOLDEN_VARIANTS, golden_case
from naive_ss2d import authors_scan
from tiny import TINY, as_trained
from torch.nn.modules.batchnorm import _BatchNorm

from mmmobilemamba import MobileMamba
from mmmobilemamba.checkpoint import authors_key
from mmmobilemamba.layers import SS2D


def tiny(**options):
    torch.manual_seed(0)
    return as_trained(MobileMamba(TINY, **options)).train()


def relative(value, reference):
    return ((value - reference).abs().max() / reference.std()).item()


@pytest.mark.parametrize('variant', GOLDEN_VARIANTS)
def test_golden_parity(variant, monkeypatch):
    """Features within 1e-5 of their standard deviation, gradients within 1e-4, of the authors' code.

    Their golden batch of two images was mixed by their CPU code, which `authors_scan` replays.
    """
    monkeypatch.setattr(SS2D, '_scan', authors_scan)
    case = golden_case(variant)
    model = MobileMamba(variant, out_indices=(0, 1, 2, 3)).eval()
    model.load_state_dict(case.state_dict)
    x = case.image.requires_grad_()
    outputs = model(x)
    for output, reference in zip(outputs, case.features, strict=True):
        assert relative(output, reference) < 1e-5
    loss = sum((output * weight).mean() for output, weight in zip(outputs, case.loss_weights, strict=True))
    loss.backward()
    assert abs(loss.item() - case.loss) < 1e-5
    assert relative(x.grad, case.grad_input) < 1e-4
    norms = {authors_key(name): p.grad.norm().item() for name, p in model.named_parameters()}
    assert norms.keys() == case.grad_norms.keys()
    np.testing.assert_allclose([norms[k] for k in case.grad_norms], list(case.grad_norms.values()), rtol=1e-4)


@pytest.mark.parametrize('variant', GOLDEN_VARIANTS)
def test_each_image_alone_equals_the_authors_network(variant, monkeypatch):
    """For one image the authors' steps and ours are the same network; ours is it for any batch."""
    case = golden_case(variant)
    model = MobileMamba(variant, out_indices=(0, 1, 2, 3)).eval()
    model.load_state_dict(case.state_dict)
    with torch.no_grad():
        together = model(case.image)
        monkeypatch.setattr(SS2D, '_scan', authors_scan)
        for i, image in enumerate(case.image.split(1)):
            for output, reference in zip(together, model(image), strict=True):
                assert relative(output[i : i + 1], reference) < 1e-5


@pytest.mark.parametrize(
    'variant, channels',
    [
        ('t2', (144, 272, 368)),
        ('t4', (176, 368, 448)),
        ('s6', (192, 384, 448)),
        ('b1', (200, 376, 448)),
        ('b2', (200, 376, 448)),
        ('b4', (200, 376, 448)),
    ],
)
def test_channels_and_strides(variant, channels):
    model = MobileMamba(variant)
    assert model.out_channels == channels
    assert model.out_strides == (16, 32, 64)


@pytest.mark.parametrize('size', [(1, 1), (1, 40), (17, 33), (63, 65), (100, 30)])
@pytest.mark.parametrize('batch', [1, 3])
def test_any_size(size, batch):
    model = tiny(out_indices=(0, 1, 2, 3)).eval()
    outputs = model(torch.randn(batch, 3, *size))
    for output, channels, stride in zip(outputs, model.out_channels, model.out_strides, strict=True):
        assert output.shape == (batch, channels, -(-size[0] // stride), -(-size[1] // stride))


@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-4), (torch.bfloat16, 0.1)])
def test_other_data_types(dtype, tolerance):
    model, x = tiny().eval(), torch.randn(2, 3, 50, 70)
    reference = model(x)
    for output, expected in zip(model.to(dtype)(x.to(dtype)), reference, strict=True):
        assert output.dtype == dtype
        assert relative(output.float(), expected.float()) < tolerance


def test_memory_format_makes_no_difference():
    model, x = tiny().eval(), torch.randn(2, 3, 50, 70)
    for a, b in zip(model(x), model(x.to(memory_format=torch.channels_last)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_unused_stages_are_not_built():
    model = tiny(out_indices=(0, 1))
    assert not any(name.startswith(('stage2', 'stage3')) for name, _ in model.named_parameters())
    assert [output.shape[1] for output in model(torch.randn(1, 3, 32, 32))] == [16, 16]


@pytest.mark.parametrize('frozen', [-1, 0, 1, 2, 3])
def test_frozen_stages(frozen):
    model = tiny(frozen_stages=frozen).train()
    for i, stage in enumerate(model.stages):
        assert all(p.requires_grad == (i > frozen) for p in stage.parameters())
        assert all(m.training == (i > frozen) for m in stage.modules())
    before = copy.deepcopy(model.state_dict())
    outputs = model(torch.randn(2, 3, 64, 64))
    if frozen < 3:
        sum(output.sum() for output in outputs).backward()
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1).step()
    changed = {k.split('.')[0] for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == set(['stem', 'stage1', 'stage2', 'stage3'][frozen + 1 :])


def test_norm_eval_keeps_the_statistics_while_weights_train():
    model = tiny(norm_eval=True)
    assert model.train() is model
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    assert norms and not any(m.training for m in norms)
    assert all(m.weight.requires_grad for m in norms)
    assert model.stem.training


def test_checkpointing_changes_nothing():
    """Outputs, gradients and BN statistics with and without recomputation."""
    x = torch.randn(2, 3, 64, 48)
    results = []
    for with_cp in (False, True):
        model = tiny(with_cp=with_cp).train()
        sum(output.square().mean() for output in model(x)).backward()
        results.append(({n: p.grad for n, p in model.named_parameters()}, model.state_dict()))
    (grads, state), (grads_cp, state_cp) = results
    for name in grads:
        torch.testing.assert_close(grads_cp[name], grads[name])
    for name in state:
        torch.testing.assert_close(state_cp[name], state[name])


def test_drop_path_rates_rise_over_the_blocks():
    model = MobileMamba(dict(TINY, depths=[1, 2, 1]), drop_path_rate=0.3)
    rates = [getattr(b.drop_path, 'drop_prob', 0.0) for s in model.stages[1:] for b in s.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


def test_sync_bn_is_built_from_norm_cfg():
    model = tiny(norm_cfg=dict(type='SyncBN', requires_grad=True))
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    assert norms and all(isinstance(m, torch.nn.SyncBatchNorm) for m in norms)


def test_registered_where_mmdet_and_mmseg_look():
    cfg = dict(type='MobileMamba', arch=TINY)
    for package in ('mmengine', 'mmdet', 'mmseg'):
        registry = pytest.importorskip(f'{package}.registry').MODELS
        assert type(registry.build(cfg)) is MobileMamba


def test_copies_and_pickles():
    model, x = tiny().eval(), torch.randn(1, 3, 32, 32)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        twin.load_state_dict(model.state_dict())
        torch.testing.assert_close(twin(x), model(x))
