import pytest
import torch
from torch import nn

from mmmobilemamba.errors import UserError
from mmmobilemamba.evaluation.backbone_spec import build_backbone
from mmmobilemamba.evaluation.receptive_field import area_shares, effective_receptive_field


def test_a_box_filter_sees_its_window_and_nothing_else():
    conv = nn.Conv2d(3, 2, 3, padding=1)
    nn.init.constant_(conv.weight, 0.5)
    field = effective_receptive_field(conv, [torch.randn(3, 9, 9)] * 2)
    expected = torch.zeros(9, 9, dtype=torch.float64)
    expected[3:6, 3:6] = 0.5 * 2 * 3
    torch.testing.assert_close(field, expected)


def test_area_shares_of_a_uniform_and_of_a_pointed_field():
    shares = area_shares(torch.ones(5, 5), [1 / 25, 0.3, 0.99])
    assert shares == pytest.approx([1 / 25, 9 / 25, 1])
    pointed = torch.zeros(5, 5)
    pointed[2, 2], pointed[0, 0] = 6, 4
    assert area_shares(pointed, [0.5, 0.7]) == pytest.approx([1 / 25, 1])
    with pytest.raises(ValueError, match='zero everywhere'):
        area_shares(torch.zeros(3, 3))


@pytest.mark.parametrize('spec', ['b9', 'mmdet.ResNet(18)', 'mmdet.NoNet(depth=1)', 'os.system(x=1)'])
def test_bad_specs(spec):
    with pytest.raises(UserError, match=r'The model|no registry'):
        build_backbone(spec)
