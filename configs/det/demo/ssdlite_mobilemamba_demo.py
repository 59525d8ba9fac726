# SSDLite with MobileMamba-T2 on the demo data: tools/train.py … --data-root data/demo
# The pictures are enlarged to the 320 pixels that the anchors are made for.
_base_ = ['../ssdlite_mobilemamba.py', './_base_/demo.py']

channels = (144, 272, 512, 256, 256, 128)
model = dict(
    # Frozen statistics are for backbones that start from trained weights.
    backbone=dict(arch='t2', norm_eval=False),
    neck=dict(in_channels=channels[:2], out_channels=channels),
    bbox_head=dict(in_channels=channels),
)

# No flips: mirrored digits are not digits. No Expand: it is for long schedules, and makes digits
# smaller than the anchors.
train_pipeline = [t for t in _base_.train_pipeline if t['type'] not in ('RandomFlip', 'Expand')]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(times=4, dataset=dict(pipeline=train_pipeline)),
)

train_cfg = _base_.demo_train_cfg
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = _base_.demo_param_scheduler
default_hooks = _base_.demo_hooks
