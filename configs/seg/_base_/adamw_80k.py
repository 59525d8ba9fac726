# The published schedule of DeepLabv3 and PSPNet: 80k iterations at a batch size of 4 GPUs x 8.
_base_ = 'mmseg::_base_/schedules/schedule_80k.py'

optim_wrapper = dict(
    optimizer=dict(
        _delete_=True, type='AdamW', lr=1.2e-4, betas=(0.9, 0.999), weight_decay=0.05
    ),
    paramwise_cfg=dict(custom_keys=dict(norm=dict(decay_mult=0.0))),
    clip_grad=dict(_delete_=True, max_norm=0.1, norm_type=2),
)
max_iters = 80000
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-5, by_epoch=False, begin=0, end=500),
    dict(
        type='CosineAnnealingLR',
        eta_min=0.0,
        begin=max_iters // 2,
        end=max_iters,
        T_max=max_iters // 2,
        by_epoch=False,
    ),
]
auto_scale_lr = dict(enable=False, base_batch_size=32)
