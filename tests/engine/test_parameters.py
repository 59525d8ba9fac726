"""Published configs have valid settings only."""

from collections.abc import Iterator
from typing import Any

import pytest
from mmengine.config import Config

from mmmobilemamba.engine.parameters import REGISTRIES, parameters_at


def parts(node: Any, place: list[str]) -> Iterator[tuple[list[str], dict]]:
    if isinstance(node, dict):
        yield place, node
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, value in items:
        yield from parts(value, [*place, str(name)])


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
    for top in REGISTRIES:
        for place, node in parts(cfg.get(top), [top]):
            takes = parameters_at(cfg, place, node.get('type'))
            if takes is not None:
                known += 1
                assert not takes.are_all or not [name for name in node if name not in takes], place
    assert known > 40
