# Settings of the demos: pictures of 160 pixels, from random weights, in minutes on two cores.
demo_scale = (160, 160)
demo_epochs = 3
# Higher rates disturb the heads, which begin with small weights and have no normalisation.
demo_lr = 3.5e-4
demo_train_cfg = dict(max_epochs=demo_epochs, val_interval=demo_epochs)
demo_param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=60),
    dict(
        type='CosineAnnealingLR',
        eta_min=0.0,
        begin=0,
        end=demo_epochs,
        T_max=demo_epochs,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
demo_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=1, max_keep_ckpts=2),
    # At mmdet's 0.3 the wrong digits cover the right ones.
    visualization=dict(score_thr=0.5),
)
randomness = dict(seed=0)
