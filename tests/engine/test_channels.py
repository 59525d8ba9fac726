import pytest
from mmengine.config import Config
from tiny import REPOSITORY

from mmmobilemamba.engine import check_channels, load_config, set_arch
from mmmobilemamba.errors import UserError

CONFIGS = REPOSITORY / 'configs'
T2 = [144, 272, 368]


def model(arch='t2', out_indices=(1, 2, 3), **parts):
    backbone = dict(type='MobileMamba', arch=arch, out_indices=out_indices)
    return Config(dict(model=dict(backbone=backbone, **parts)))


def test_arch_sets_every_channel_of_a_neck_and_its_head():
    cfg = load_config(str(CONFIGS / 'det/ssdlite_mobilemamba.py'), arch='t2')
    assert cfg.model.backbone.arch == 't2'
    assert cfg.model.neck.in_channels == [144, 272]
    assert cfg.model.neck.out_channels == [144, 272, 512, 256, 256, 128]
    assert cfg.model.bbox_head.in_channels == [144, 272, 512, 256, 256, 128]


def test_arch_sets_the_channels_of_heads_without_a_neck():
    cfg = load_config(str(CONFIGS / 'seg/pspnet_mobilemamba.py'), arch='s6')
    assert cfg.model.decode_head.in_channels == 448
    assert cfg.model.auxiliary_head.in_channels == 384


def test_arch_works_on_lists_and_nested_models():
    cfg = model(
        'b1',
        decode_head=[
            dict(type='FCNHead', in_channels=376, in_index=1),
            dict(type='OCRHead', in_channels=448),
        ],
        auxiliary_head=dict(type='UPerHead', in_channels=(200, 448), in_index=(0, 2)),
    )
    cfg.model = dict(type='SegTTAModel', module=cfg.model)
    set_arch(cfg, 't2')
    inner = cfg.model.module
    assert [head.in_channels for head in inner.decode_head] == [272, 368]
    assert inner.auxiliary_head.in_channels == [144, 368]
    check_channels(cfg)


def test_arch_needs_a_mobilemamba():
    with pytest.raises(UserError, match='has none'):
        set_arch(Config(dict(model=dict(backbone=dict(type='ResNet', depth=50)))), 't2')
    with pytest.raises(UserError, match='--arch t3 is unknown.*t2, t4'):
        set_arch(model(), 't3')


@pytest.mark.parametrize(
    'parts, message',
    [
        (
            dict(neck=dict(type='FPN', in_channels=[200, 376, 448])),
            r'model.neck.in_channels=\[200, 376, 448\], which must be \[144, 272, 368\]',
        ),
        (
            dict(neck=[dict(type='FPN', in_channels=[144, 272]), dict(type='DyHead', in_channels=256)]),
            r'model.neck.0.in_channels=\[144, 272\], which must be \[144, 272, 368\]',
        ),
        (
            dict(neck=dict(type='DilatedEncoder', in_channels=448)),
            'model.neck.in_channels=448, which must be 368',
        ),
        (
            dict(decode_head=dict(type='ASPPHead', in_channels=448, in_index=2)),
            'model.decode_head.in_channels=448, which must be 368',
        ),
        (
            dict(auxiliary_head=[dict(type='FCNHead', in_channels=368, in_index=1)]),
            'model.auxiliary_head.0.in_channels=368, which must be 272',
        ),
        (
            dict(decode_head=dict(type='DepthwiseSeparableASPPHead', in_channels=368, c1_in_channels=256)),
            'model.decode_head.c1_in_channels=256, which must be 144',
        ),
        (
            dict(
                neck=dict(type='FPN', in_channels=[144, 272, 368], out_channels=256, num_outs=4),
                decode_head=dict(type='FPNHead', in_channels=[256, 256], in_index=[0, 1, 2, 3]),
            ),
            r'model.decode_head.in_channels=\[256, 256\], which must be \[256, 256, 256, 256\]',
        ),
        (
            dict(panoptic_head=dict(type='Mask2FormerHead', in_channels=[256, 512, 1024])),
            r'model.panoptic_head.in_channels=\[256, 512, 1024\], which must be \[144, 272, 368\]',
        ),
        (
            dict(decode_head=dict(type='ASPPHead', in_channels=368, in_index=3)),
            'in_index=3, but the backbone gives 3 maps: in_index goes from 0 to 2',
        ),
    ],
)
def test_wrong_numbers_are_refused_with_the_right_ones(parts, message):
    with pytest.raises(UserError, match=message):
        check_channels(model(**parts))


def test_every_wrong_number_is_told_at_once():
    options = {'model.backbone.arch': 't2'}
    with pytest.raises(UserError) as error:
        load_config(str(CONFIGS / 'det/ssdlite_mobilemamba.py'), options)
    for key in ('neck.in_channels', 'neck.out_channels', 'bbox_head.in_channels', '--arch t2'):
        assert key in str(error.value)


def test_unknown_variant_in_the_config():
    with pytest.raises(UserError, match="arch='t3' is unknown"):
        check_channels(model('t3', neck=dict(type='FPN', in_channels=T2)))


@pytest.mark.parametrize(
    'neck',
    [
        dict(type='mmdet.FPN', in_channels=tuple(T2)),
        dict(type='YOLOV3Neck', in_channels=T2[::-1]),
        dict(type='JPU', in_channels=T2[1:], start_level=1),
        dict(type='BFP', num_levels=3),
    ],
)
def test_right_numbers_pass(neck):
    check_channels(model(neck=neck))


def test_own_variant():
    arch = dict(widths=[32, 48, 64], depths=[1, 1, 1])
    check_channels(model(arch, neck=dict(type='FPN', in_channels=[32, 48, 64])))
    with pytest.raises(UserError, match=r'\[32, 48, 64\]'):
        check_channels(model(arch, neck=dict(type='FPN', in_channels=T2)))


def test_other_backbones_are_left_alone():
    check_channels(Config(dict(model=dict(backbone=dict(type='ResNet'), neck=dict(in_channels=[1])))))
    check_channels(Config({}))
