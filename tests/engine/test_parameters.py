"""Published configs have valid settings only."""

import pytest
from mmengine.config import Config

from mmmobilemamba.engine.parameters import parameters_at, typed_parts


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
    known = 0
    for place, part in typed_parts(cfg):
        takes = parameters_at(cfg, place, part.get('type'))
        if takes is not None:
            known += 1
            assert not takes.are_all or not [name for name in part if name not in takes], place
    assert known > 40
