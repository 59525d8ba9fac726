# Settings of the demos: pictures of 160 pixels, from random weights, in minutes on two cores.
demo_scale = (160, 160)
demo_epochs = 10
demo_lr = 1e-3
demo_train_cfg = dict(max_epochs=demo_epochs, val_interval=5)
demo_param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        eta_min=0.0,
        begin=demo_epochs // 2,
        end=demo_epochs,
        T_max=demo_epochs // 2,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
demo_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=1, max_keep_ckpts=1))
