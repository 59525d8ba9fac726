# The published schedule of RetinaNet and Mask R-CNN: 12 epochs at a batch size of 4 GPUs x 4.
_base_ = '../../_base_/mobilemamba.py'

max_epochs = 12
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(lr=2e-4, **_base_.adamw),
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
auto_scale_lr = dict(enable=False, base_batch_size=16)
