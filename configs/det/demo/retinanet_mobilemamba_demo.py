# RetinaNet with MobileMamba-T2 for pictures of 160 pixels, trained from random weights in minutes
# on two cores. tools/quickstart.sh demo runs it with --data-root data/demo.
_base_ = ['../retinanet_mobilemamba.py', './_base_/demo.py']

model = dict(
    # Frozen statistics are for backbones that start from trained weights.
    backbone=dict(arch='t2', norm_eval=False),
    neck=dict(in_channels=[144, 272, 368]),
)

# No flips: mirrored digits are not digits.
train_pipeline = [
    dict(t, scale=_base_.demo_scale) if t['type'] == 'Resize' else t
    for t in _base_.train_pipeline
    if t['type'] != 'RandomFlip'
]
test_pipeline = [
    dict(t, scale=_base_.demo_scale) if t['type'] == 'Resize' else t for t in _base_.test_pipeline
]
train_dataloader = dict(batch_size=2, num_workers=1, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=8, num_workers=1, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = _base_.demo_train_cfg
optim_wrapper = dict(optimizer=dict(lr=_base_.demo_lr))
param_scheduler = _base_.demo_param_scheduler
default_hooks = _base_.demo_hooks
# No test-time augmentation: its flips and scales are not for small digits.
tta_model = None
