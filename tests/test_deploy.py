import copy
import pickle

import pytest
import torch
from tiny import as_trained
from torch import nn

from mmmobilemamba import MobileMamba
from mmmobilemamba.checkpoint import CheckpointError, to_authors_layout
from mmmobilemamba.deploy import switch_to_deploy
from mmmobilemamba.errors import UserError

TINY = dict(widths=[16, 24, 32], depths=[1, 2, 1])


def trained(arch=TINY, **options):
    """A backbone with random statistics and scales, as training would leave it."""
    torch.manual_seed(0)
    return as_trained(MobileMamba(arch, out_indices=(0, 1, 2, 3), **options))


@pytest.mark.parametrize('arch', [TINY, 't2', 'b1', dict(TINY, wavelet_levels=2), dict(TINY, wavelet='db2')])
@pytest.mark.parametrize('grad', [False, True], ids=['inference', 'grad'])
def test_folding_changes_nothing(arch, grad):
    model, x = trained(arch), torch.randn(2, 3, 97, 130)
    with torch.set_grad_enabled(grad):
        expected = model(x)
        model.switch_to_deploy()
        outputs = model(x)
        for output, reference in zip(outputs, expected, strict=True):
            assert (output - reference).abs().max() < 1e-4 * reference.std()
        assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
        model.switch_to_deploy()
        for output, again in zip(outputs, model(x), strict=True):
            assert torch.equal(output, again)


def test_folding_takes_away_parameters():
    """What remains are convolutions with bias and the scan: one tensor pair per convolution."""
    model = trained()
    before = sum(p.numel() for p in model.parameters())
    model.switch_to_deploy()
    assert sum(p.numel() for p in model.parameters()) < before
    assert not any(p.requires_grad for p in model.parameters())


def test_device_and_data_type_are_kept():
    model, x = trained().double(), torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected = model(x)
    model.switch_to_deploy()
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    for output, reference in zip(model(x), expected, strict=True):
        torch.testing.assert_close(output, reference, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_weights_packed_for_one_type_are_not_used_for_another():
    """The layout that oneDNN gave to the weights goes with them: other types, copies, loaded weights."""
    model, x = trained(), torch.randn(1, 3, 64, 64)
    model.switch_to_deploy()
    expected = model(x)[-1]
    assert model.double()(x.double())[-1].dtype == torch.float64
    torch.testing.assert_close(model.float()(x)[-1], expected)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x)[-1], expected)
    doubled = {k: 2 * v if k.startswith('stem.6') else v for k, v in model.state_dict().items()}
    model.load_state_dict(doubled)
    torch.testing.assert_close(model(x)[0], 2 * twin(x)[0])


def test_other_image_sizes_after_the_first():
    model = trained()
    model.switch_to_deploy()
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for size in ((32, 32), (200, 64), (33, 1)):
            x = torch.randn(1, 3, *size)
            with torch.enable_grad():
                expected = reference(x)
            for output, plain in zip(model(x), expected, strict=True):
                torch.testing.assert_close(output, plain, rtol=1e-4, atol=1e-4)


def test_training_is_refused():
    model = trained()
    model.switch_to_deploy()
    assert model.eval() is model
    with pytest.raises(UserError, match=r'fused by switch_to_deploy\(\) and can no longer be trained'):
        model.train()


def test_checkpoints_of_the_other_kind_are_refused():
    model, folded = trained(), trained()
    folded.switch_to_deploy()
    for weights in (model.state_dict(), to_authors_layout(model.state_dict())):
        with pytest.raises(CheckpointError, match='load the checkpoint first, then call switch_to_deploy'):
            folded.load_state_dict(weights)
    with pytest.raises(CheckpointError, match='cannot be undone'):
        model.load_state_dict(folded.state_dict())
    folded.load_state_dict(folded.state_dict())


def test_every_backbone_of_a_model_is_folded():
    model = nn.Sequential(trained(), nn.Identity())
    switch_to_deploy(model)
    assert model[0].deployed
    with pytest.raises(UserError, match='Sequential holds no backbone that can be fused'):
        switch_to_deploy(nn.Sequential(nn.Identity()))
