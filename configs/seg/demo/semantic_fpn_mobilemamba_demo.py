# Semantic FPN with MobileMamba-T2 on the demo data: tools/train.py … --data-root data/demo
_base_ = ['../semantic_fpn_mobilemamba.py', './_base_/demo.py']

model = dict(
    backbone=dict(arch='t2'),
    neck=dict(in_channels=[144, 272, 368]),
)

train_dataloader = _base_.demo_train_dataloader
val_dataloader = test_dataloader = _base_.demo_test_dataloader

train_cfg = _base_.demo_train_cfg
optim_wrapper = dict(optimizer=dict(lr=_base_.demo_lr / 2))
param_scheduler = _base_.demo_param_scheduler
default_hooks = _base_.demo_hooks
# No test-time augmentation: its flips and scales are not for small digits.
tta_model = None
