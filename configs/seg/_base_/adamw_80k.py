# The published schedule of DeepLabv3 and PSPNet: 80k iterations at a batch size of 4 GPUs x 8.
_base_ = ['mmseg::_base_/schedules/schedule_80k.py', '../../_base_/mobilemamba.py']

optim_wrapper = dict(
    optimizer=dict(_delete_=True, lr=1.2e-4, **_base_.adamw),
    paramwise_cfg=_base_.norms_without_decay,
    clip_grad=dict(_delete_=True, **_base_.clip_grad),
)
max_iters = 80000
param_scheduler = [
    _base_.warm_up,
    dict(
        begin=max_iters // 2,
        end=max_iters,
        T_max=max_iters // 2,
        by_epoch=False,
        **_base_.cosine,
    ),
]
auto_scale_lr = dict(enable=False, base_batch_size=32)
