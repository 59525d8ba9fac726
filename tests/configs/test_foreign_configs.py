"""The backbone in configs of the installed packages: five changed lines make them MobileMamba's."""

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from test_published import build, sample

from mmmobilemamba.engine import check_channels

# Heads of detectors rely on the strides of their levels, 8 to 128 or 4 to 64; the neck makes them.
NECK = dict(_delete_=True, type='EfficientViTFPN', in_channels=[144, 272, 368], num_outs=5)
FOREIGN = {
    'mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py': dict(neck=dict(NECK, num_extra_trans_convs=1)),
    'mmdet::atss/atss_r50_fpn_1x_coco.py': dict(neck=dict(NECK, num_extra_trans_convs=1)),
    'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py': dict(neck=dict(NECK, num_extra_trans_convs=2)),
    'mmseg::upernet/upernet_r50_4xb4-80k_ade20k-512x512.py': dict(
        pretrained=None,
        decode_head=dict(in_channels=[144, 272, 368], in_index=[0, 1, 2]),
        auxiliary_head=dict(in_channels=272, in_index=1),
    ),
}

LINES = """
_base_ = {base!r}
custom_imports = dict(imports=['mmmobilemamba'], allow_failed_imports=False)
model = dict(backbone=dict(_delete_=True, type='MobileMamba', arch='t2'), **{changes!r})
"""


@pytest.mark.parametrize('base', FOREIGN, ids=lambda base: base.split('/')[0])
def test_config_takes_the_backbone(base, tmp_path):
    torch.manual_seed(0)
    path = tmp_path / 'config.py'
    path.write_text(LINES.format(base=base, changes=FOREIGN[base]))
    cfg = Config.fromfile(path)
    check_channels(cfg)
    model = revert_sync_batchnorm(build(cfg)).train()
    size = (96, 128)
    data = dict(
        inputs=[torch.randint(0, 256, (3, *size), dtype=torch.uint8) for _ in range(2)],
        data_samples=[sample(cfg, size) for _ in range(2)],
    )
    inputs = model.data_preprocessor(data, training=True)
    loss, _ = model.parse_losses(model(**inputs, mode='loss'))
    loss.backward()
    gradients = [p.grad for p in model.backbone.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    assert any(g.abs().sum() > 0 for g in gradients)
    with torch.no_grad():
        results = model.eval().test_step(data)
    assert len(results) == 2
