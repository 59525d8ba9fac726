# SSDLite with MobileMamba-B1 at 320 pixels on COCO in data/coco/: 120 epochs of 5 repeats at a batch
# size of 8 GPUs x 24. Trains as retinanet_mobilemamba.py does.
_base_ = [
    'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py',
    '../_base_/mobilemamba.py',
]
custom_imports = dict(imports=['mmmobilemamba', 'mmmobilemamba.heads'])

channels = (200, 376, 512, 256, 256, 128)
model = dict(
    # Stage 3 is not used, hence not built.
    backbone=dict(_delete_=True, type='MobileMamba', arch='b1', out_indices=(1, 2), norm_eval=True),
    neck=dict(in_channels=channels[:2], out_channels=channels),
    bbox_head=dict(type='SSDLiteHead', in_channels=channels),
)

# Of a batch of one image, the last map is a single pixel, which cannot be normalised.
train_dataloader = dict(drop_last=True)
max_epochs = _base_.max_epochs
optim_wrapper = dict(
    optimizer=dict(_delete_=True, lr=2.4e-3, **_base_.adamw),
    paramwise_cfg=_base_.norms_without_decay,
    clip_grad=_base_.clip_grad,
)
param_scheduler = [
    _base_.warm_up,
    dict(
        begin=max_epochs // 2,
        end=max_epochs,
        T_max=max_epochs // 2,
        by_epoch=True,
        convert_to_iter_based=True,
        **_base_.cosine,
    ),
]
