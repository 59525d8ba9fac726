# SSDLite with MobileMamba-B1 at 320 pixels on COCO in data/coco/.
_base_ = 'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py'
custom_imports = dict(imports=['mmmobilemamba'], allow_failed_imports=False)

channels = (200, 376, 512, 256, 256, 128)
model = dict(
    # Stage 3 is not used, hence not built.
    backbone=dict(
        _delete_=True, type='MobileMamba', arch='b1', out_indices=(1, 2), norm_eval=True
    ),
    neck=dict(in_channels=channels[:2], out_channels=channels),
    bbox_head=dict(in_channels=channels),
)

max_epochs = 120
optim_wrapper = dict(
    optimizer=dict(
        _delete_=True, type='AdamW', lr=2.4e-3, betas=(0.9, 0.999), weight_decay=0.05
    ),
    paramwise_cfg=dict(custom_keys=dict(norm=dict(decay_mult=0.0))),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-5, by_epoch=False, begin=0, end=500),
    dict(
        type='CosineAnnealingLR',
        eta_min=0.0,
        begin=max_epochs // 2,
        end=max_epochs,
        T_max=max_epochs // 2,
        by_epoch=True,
    ),
]
