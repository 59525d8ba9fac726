# Mask R-CNN with MobileMamba-B1 on COCO in data/coco/. Trains as retinanet_mobilemamba.py does.
_base_ = [
    'mmdet::_base_/models/mask-rcnn_r50_fpn.py',
    'mmdet::_base_/datasets/coco_instance.py',
    'mmdet::_base_/default_runtime.py',
    './_base_/adamw_12e.py',
]

model = dict(
    backbone=dict(_delete_=True, type='MobileMamba', arch='b1', norm_eval=True),
    neck=dict(
        _delete_=True,
        type='EfficientViTFPN',
        in_channels=[200, 376, 448],
        num_outs=5,
        # Strides 8 and 4 beside the backbone's 16, 32 and 64.
        num_extra_trans_convs=2,
    ),
)
train_dataloader = dict(batch_size=4, num_workers=4)
