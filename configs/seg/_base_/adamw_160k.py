# The published schedule of Semantic FPN: 160k iterations at a batch size of 4 GPUs x 8.
_base_ = ['mmseg::_base_/schedules/schedule_160k.py', '../../_base_/mobilemamba.py']

# No gradient clipping, unlike the other schedules.
optim_wrapper = dict(
    optimizer=dict(_delete_=True, lr=1.2e-4, **_base_.adamw),
    paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=10.0), **_base_.norms_without_decay.custom_keys)),
)
max_iters = 160000
param_scheduler = [
    dict(_base_.warm_up, start_factor=1e-6, end=1500),
    dict(
        begin=max_iters // 2,
        end=max_iters,
        T_max=max_iters // 2,
        by_epoch=False,
        **_base_.cosine,
    ),
]
auto_scale_lr = dict(enable=False, base_batch_size=32)
