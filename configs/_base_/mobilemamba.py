# What the seven published configs have in common.
custom_imports = dict(imports=['mmmobilemamba'], allow_failed_imports=False)

adamw = dict(type='AdamW', betas=(0.9, 0.999), weight_decay=0.05)
norms_without_decay = dict(custom_keys=dict(norm=dict(decay_mult=0.0)))
clip_grad = dict(max_norm=0.1, norm_type=2)

# The learning rate is constant between the two, and falls in the second half of the training.
warm_up = dict(type='LinearLR', start_factor=1e-5, by_epoch=False, begin=0, end=500)
cosine = dict(type='CosineAnnealingLR', eta_min=0.0)
