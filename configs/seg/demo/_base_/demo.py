# Settings of the demos: from random weights, in minutes on two cores. The pictures of 160 pixels are
# enlarged, or the strokes of a digit would be narrower than a cell of the last stage, 64 pixels.
demo_scale = (640, 640)
demo_crop = (512, 512)
demo_iters = 600
demo_lr = 1e-3
demo_train_cfg = dict(max_iters=demo_iters, val_interval=demo_iters)
demo_param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=50),
    dict(
        type='CosineAnnealingLR',
        eta_min=0.0,
        begin=demo_iters // 2,
        end=demo_iters,
        T_max=demo_iters // 2,
        by_epoch=False,
    ),
]
demo_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=demo_iters // 2, max_keep_ckpts=2))
# No flips: mirrored digits are not digits.
demo_train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='RandomResize', scale=demo_scale, ratio_range=(0.75, 1.25), keep_ratio=True),
    dict(type='RandomCrop', crop_size=demo_crop, cat_max_ratio=0.95),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
demo_test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=demo_scale, keep_ratio=True),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
demo_train_dataloader = dict(batch_size=4, num_workers=1, dataset=dict(pipeline=demo_train_pipeline))
demo_test_dataloader = dict(num_workers=1, dataset=dict(pipeline=demo_test_pipeline))
