# Semantic FPN with MobileMamba-B4 on ADE20K in data/ade/ADEChallengeData2016/.
_base_ = [
    'mmseg::_base_/models/fpn_r50.py',
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/default_runtime.py',
    './_base_/adamw_160k.py',
]

model = dict(
    data_preprocessor=dict(size=(512, 512)),
    pretrained=None,
    backbone=dict(_delete_=True, type='MobileMamba', arch='b4'),
    neck=dict(in_channels=[200, 376, 448], num_outs=3),
    decode_head=dict(
        in_channels=[256, 256, 256],
        in_index=[0, 1, 2],
        feature_strides=[16, 32, 64],
        num_classes=150,
    ),
)
train_dataloader = dict(batch_size=8, num_workers=8)
