# Semantic FPN with MobileMamba-B4 on ADE20K in data/ade/ADEChallengeData2016/.
_base_ = [
    'mmseg::_base_/models/fpn_r50.py',
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/default_runtime.py',
    './_base_/adamw_80k.py',
]
custom_imports = dict(imports=['mmmobilemamba'], allow_failed_imports=False)

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

max_iters = 160000
train_cfg = dict(max_iters=max_iters, val_interval=16000)
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=10.0))),
    clip_grad=None,
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(
        type='CosineAnnealingLR',
        eta_min=0.0,
        begin=max_iters // 2,
        end=max_iters,
        T_max=max_iters // 2,
        by_epoch=False,
    ),
]
default_hooks = dict(checkpoint=dict(interval=16000))
