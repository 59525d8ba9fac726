# RetinaNet with MobileMamba-B1 on COCO in data/coco/.
#
# The published schedule begins with the authors' ImageNet weights; give their file to the backbone:
#   tools/train.py configs/det/retinanet_mobilemamba.py --cfg-options \
#       model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=FILE
# It trains from random weights too, without a download, with model.backbone.norm_eval=False.
_base_ = [
    'mmdet::_base_/models/retinanet_r50_fpn.py',
    'mmdet::_base_/datasets/coco_detection.py',
    'mmdet::_base_/default_runtime.py',
    'mmdet::retinanet/retinanet_tta.py',
    './_base_/adamw_12e.py',
]

model = dict(
    backbone=dict(_delete_=True, type='MobileMamba', arch='b1', norm_eval=True),
    neck=dict(
        _delete_=True,
        type='EfficientViTFPN',
        in_channels=[200, 376, 448],
        num_outs=5,
        num_extra_trans_convs=1,
        add_extra_convs='on_input',
    ),
)
train_dataloader = dict(batch_size=4, num_workers=4)
