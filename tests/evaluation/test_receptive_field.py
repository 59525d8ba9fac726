import pytest
import torch
from torch import nn

from mmmobilemamba import MobileMamba
from mmmobilemamba.errors import UserError
from mmmobilemamba.evaluation.backbone_spec import build_backbone
from mmmobilemamba.evaluation.receptive_field import area_shares, effective_receptive_field, noise_images


def test_a_box_filter_sees_its_window_and_nothing_else():
    conv = nn.Conv2d(3, 2, 3, padding=1)
    nn.init.constant_(conv.weight, 0.5)
    field = effective_receptive_field(conv, [torch.randn(3, 9, 9)] * 2)
    expected = torch.zeros(9, 9, dtype=torch.float64)
    expected[3:6, 3:6] = 0.5 * 2 * 3
    torch.testing.assert_close(field, expected)


def half_of_the_gradient(backbone):
    """Share of the area that holds it, of 256 x 256 pixels."""
    return area_shares(effective_receptive_field(backbone, noise_images(1, 256, 0)), [0.5])[0]


@pytest.mark.parametrize('from_config', [False, True])
def test_random_weights_show_the_token_mixers(from_config, det_config):
    torch.manual_seed(0)
    whole = half_of_the_gradient(build_backbone(str(det_config) if from_config else 't2'))
    torch.manual_seed(0)
    stem = half_of_the_gradient(MobileMamba('t2', out_indices=(0,)))
    torch.manual_seed(0)
    without_mixers = half_of_the_gradient(MobileMamba('t2'))
    assert whole > 1.1 * without_mixers > 10 * stem


def test_weights_of_a_file_stay_as_they_are(tmp_path):
    given = MobileMamba('t2').state_dict()
    torch.save(given, tmp_path / 'x.pth')
    loaded = build_backbone(f't2,{tmp_path}/x.pth').state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in given.items())


@pytest.mark.parametrize('out', [-3, 2, 7])
def test_a_map_that_is_not_there(out):
    class TwoMaps(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(UserError, match=f'no map {out}: TwoMaps gives 2, which are counted from 0 to 1'):
        effective_receptive_field(TwoMaps(), [torch.zeros(3, 4, 4)], out)


def test_area_shares_of_a_uniform_and_of_a_pointed_field():
    shares = area_shares(torch.ones(5, 5), [1 / 25, 0.3, 0.99])
    assert shares == pytest.approx([1 / 25, 9 / 25, 1])
    pointed = torch.zeros(5, 5)
    pointed[2, 2], pointed[0, 0] = 6, 4
    assert area_shares(pointed, [0.5, 0.7]) == pytest.approx([1 / 25, 1])
    with pytest.raises(UserError, match='zero everywhere'):
        area_shares(torch.zeros(3, 3))


@pytest.mark.parametrize('spec', ['b9', 'mmdet.ResNet(18)', 'mmdet.NoNet(depth=1)', 'os.system(x=1)'])
def test_bad_specs(spec):
    with pytest.raises(UserError, match=r'The model|no registry'):
        build_backbone(spec)
