import sys
from types import SimpleNamespace

import pytest
import torch
from configs.cases import CONFIGS
from torch import nn
from torch._inductor import config as inductor_config

from mmmobilemamba import MobileMamba
from mmmobilemamba.benchmark.candidates import Candidate, Network, Workload
from mmmobilemamba.errors import UserError

IMAGES = torch.rand(1, 3, 64, 64)


@pytest.mark.parametrize(
    ('text', 'name', 'spec', 'folded'),
    [
        ('b1', 'b1', 'b1', False),
        ('b1+deploy', 'b1+deploy', 'b1', True),
        ('ours=b1+deploy', 'ours', 'b1', True),
        ('configs/det/x.py,work/epoch_1.pth', 'x, epoch_1', 'configs/det/x.py,work/epoch_1.pth', False),
        ('mmdet.ResNet(depth=50)', 'mmdet.ResNet(depth=50)', 'mmdet.ResNet(depth=50)', False),
        ('ResNet 50=mmdet.ResNet(depth=50)+deploy', 'ResNet 50', 'mmdet.ResNet(depth=50)', True),
        ('timm:repvit_m1_1', 'timm:repvit_m1_1', 'timm:repvit_m1_1', False),
    ],
)
def test_parse(text, name, spec, folded):
    assert Candidate.parse(text) == Candidate(name, spec, folded)


@pytest.mark.parametrize(
    ('text', 'name', 'folded'),
    [('b1+deploy+compile', 'b1+deploy+compile', True), ('x=b1+compile', 'x', False)],
)
def test_parse_compile(text, name, folded):
    assert Candidate.parse(text) == Candidate(name, 'b1', folded, compiled=True)


def test_only_what_is_to_be_compiled_is(monkeypatch):
    frozen = []

    def compile_with(module, dynamic):
        module.register_forward_hook(lambda *_: frozen.append(inductor_config.freezing))

    monkeypatch.setattr(nn.Module, 'compile', compile_with)
    for text in ('t2', 't2+compile'):
        Workload(Candidate.parse(text), 64, 64).runner(nn.Conv2d(3, 4, 1), 'cpu')()
    assert frozen == [True, False]


def test_deploy_folds_all():
    assert Candidate.parse('b1', deploy=True) == Candidate.parse('b1+deploy', deploy=True)
    assert Candidate.parse('b1', deploy=True).name == 'b1+deploy'


def test_published():
    b2 = Candidate.parse('b2+deploy')
    assert b2.published_size == 384
    assert b2.published_top1(384, 384) == 81.6
    assert b2.published_top1(384, 512) is b2.published_top1(100, 100) is None
    assert Candidate.parse('mmdet.ResNet(depth=50)').published_size is None


def test_variant_with_fixed_random_weights():
    first, second = Candidate.parse('t2').build(), Candidate.parse('t2').build()
    assert isinstance(first, MobileMamba) and not first.training
    assert all(a.equal(b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_folded_variant():
    assert Candidate.parse('t2+deploy').build().deployed


def test_folding_of_others_keeps_their_outputs():
    text = 'mmdet.MobileNetV2(out_indices=(2,4,6))'
    plain, folded = (Candidate.parse(text + suffix).build() for suffix in ('', '+deploy'))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    with torch.no_grad():
        for expected, found in zip(plain(IMAGES), folded(IMAGES), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('name', ['ssdlite_mobilemamba', 'mask_rcnn_mobilemamba'])
def test_detectors_run_up_to_their_heads(name):
    candidate = Candidate.parse(f'{CONFIGS / "det" / name}.py')
    assert candidate.is_whole and candidate.name == name
    model = candidate.build()
    assert isinstance(model, Network)
    with torch.no_grad():
        assert len(model(torch.rand(1, 3, 32, 48))) > 0


def test_segmentors_run_up_to_their_heads(seg_config):
    model = Candidate.parse(f'{seg_config}').build()
    with torch.no_grad():
        # Of stride 64, not resized to the image.
        assert model(torch.rand(2, 3, 64, 128)).shape == (2, 150, 1, 2)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('b9', "'b9' is none of: a variant of MobileMamba"),
        ('b1(', 'cannot be read'),
        ('mmdet.NoSuchNet()', 'cannot be built'),
        ('nowhere.ResNet(depth=50)', 'choose mmdet, mmseg or mmpretrain'),
        ('no_such_config.py', 'does not exist'),
        ('b1,no_such_weights.pth', 'no_such_weights.pth. does not exist'),
    ],
)
def test_unknown_models(text, message):
    with pytest.raises(UserError, match=message):
        Candidate.parse(text).build()


class FusibleLayer(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.conv(x))

    def fuse(self):
        return nn.utils.fusion.fuse_conv_bn_eval(self.conv, self.bn)


@pytest.fixture
def timm(monkeypatch):
    """A stand-in with the functions of timm that are called."""

    def create_model(name, pretrained, num_classes):
        assert (name, pretrained, num_classes) == ('small_net', False, 0)
        return nn.Sequential(FusibleLayer(), nn.ReLU())

    module = SimpleNamespace(
        __version__='9.9',
        list_models=lambda: ['small_net', 'large_net'],
        is_model=lambda name: name == 'small_net',
        create_model=create_model,
    )
    monkeypatch.setitem(sys.modules, 'timm', module)


def test_timm(timm):
    plain, folded = (Candidate.parse(f'timm:small_net{suffix}').build() for suffix in ('', '+deploy'))
    assert isinstance(plain[0], FusibleLayer) and isinstance(folded[0], nn.Conv2d)
    torch.testing.assert_close(folded(IMAGES), plain(IMAGES))


def test_timm_without_that_model(timm):
    with pytest.raises(UserError, match="no model 'smal_net'. Similar: small_net"):
        Candidate.parse('timm:smal_net').build()


def test_timm_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(UserError, match='pip install timm torchvision'):
        Candidate.parse('timm:small_net').build()


def test_workload():
    workload = Workload(Candidate.parse('b1'), 32, 48, 2, torch.bfloat16, channels_last=True)
    assert str(workload) == 'b1, 32x48, batch 2, bfloat16'
    model, images = workload.prepare(nn.Conv2d(3, 4, 3), 'cpu')
    assert images.shape == (2, 3, 32, 48)
    for tensor in (images, model.weight):
        assert tensor.dtype == torch.bfloat16
        assert tensor.is_contiguous(memory_format=torch.channels_last)
