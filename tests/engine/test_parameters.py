"""Published configs, and those of users, are let through where their settings may be valid."""

import sys
from functools import partial

import pytest
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseModule

from mmmobilemamba.engine.options import check_settings
from mmmobilemamba.engine.parameters import parameters_of, parts
from mmmobilemamba.errors import UserError


@pytest.mark.parametrize(
    'base',
    [
        'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
        'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py',
        'mmdet::detr/detr_r50_8xb2-500e_coco.py',
        'mmdet::vfnet/vfnet_r50-mdconv-c3-c5_fpn_ms-2x_coco.py',
        'mmdet::yolox/yolox_s_8xb8-300e_coco.py',
        'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py',
        'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py',
        'mmseg::mask2former/mask2former_r50_8xb2-160k_ade20k-512x512.py',
    ],
)
def test_published_settings_are_valid(tmp_path, base):
    (tmp_path / 'x.py').write_text(f'_base_ = {base!r}')
    cfg = Config.fromfile(tmp_path / 'x.py')
    check_settings(cfg)
    assert sum(parameters_of(part) is not None for part in parts(cfg)) > 40


class OwnHook(Hook):
    def __init__(self, dataloader, interval):
        self.dataloader, self.interval = dataloader, interval


class OwnHead(BaseModule):
    """Takes out what its loss does not know."""

    def __init__(self, loss, **kwargs):
        loss.pop('bg_weight')
        kwargs.pop('old', None)
        super().__init__(**kwargs)


class TakesOut(BaseModule):
    def __init__(self, **kwargs):
        print(kwargs)
        super().__init__(**kwargs)


ALBU = dict(type='Albu', transforms=[dict(type='RandomCrop', height=512, width=512), dict(type='CLAHE', p=1)])
MMDET = dict(type='CocoDataset', _scope_='mmdet', pipeline=[dict(type='LoadAnnotations', with_bbox=True)])
KINDS = (3, ['a', 'b'], '', '.csv', 'random', 'this.that.other', 'nothing.X', partial(dict))


@pytest.mark.parametrize(
    'settings',
    [
        dict(train_dataloader=dict(dataset=dict(type='BaseSegDataset', pipeline=[ALBU]))),
        dict(train_dataloader=dict(dataset=MMDET)),
        dict(custom_hooks=[dict(type=OwnHook, dataloader=1, interval=2)]),
        dict(val_cfg=dict(type='ValLoop', dataloader=1, evaluator=2)),
        dict(model=dict(type=OwnHead, loss=dict(type='mmseg.DiceLoss', bg_weight=1), old=1)),
        dict(model=dict(type=TakesOut, new=1)),
        dict(model=dict(type='NotThere', norm=dict(type='BN', requires_grad=True))),
        dict(
            train_dataloader=dict(dataset=dict(type=TakesOut, parts=[dict(type=kind, x=1) for kind in KINDS]))
        ),
        dict(default_hooks=None, custom_hooks=None, val_evaluator=None, train_dataloader=None),
    ],
    ids=str,
)
def test_settings_that_may_be_valid_are_let_through(settings):
    modules = set(sys.modules)
    check_settings(Config(dict(default_scope='mmseg', **settings)))
    assert not {'random', 'this'} & (set(sys.modules) - modules)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (
            dict(custom_hooks=[dict(type=OwnHook, intervall=2)]),
            "custom_hooks.0.intervall: OwnHook .*'interval'",
        ),
        (dict(train_dataloader=dict(dataset=dict(MMDET, pipline=[]))), "CocoDataset .*'pipeline'"),
        (dict(default_hooks=[1]), r'default_hooks is \[1\]; allowed is a dict'),
    ],
)
def test_settings_that_are_not_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        check_settings(Config(dict(default_scope='mmseg', **settings)))
