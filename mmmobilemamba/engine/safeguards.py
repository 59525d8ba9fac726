"""What guards every training run."""

import logging

from mmengine.config import Config
from mmengine.logging import print_log

HOOKS = ('SeedHook', 'FiniteLossHook')


def add_safeguards(cfg: Config) -> None:
    """Let a run survive interruptions, and stop before its weights are spoilt.

    See :class:`SeedHook`, :class:`WholeFileBackend` and :class:`FiniteLossHook`.
    """
    hooks = [h for h in cfg.get('custom_hooks') or [] if h.get('type') not in HOOKS]
    cfg.custom_hooks = [*hooks, *(dict(type=name) for name in HOOKS)]
    if cfg.train_dataloader.get('persistent_workers'):
        print_log(
            'persistent_workers of the train_dataloader is False instead of True: workers that outlive an '
            'epoch cannot be seeded, and a run that is resumed would see other data',
            logger='current',
        )
    cfg.train_dataloader.persistent_workers = False
    _warn_of_initial_values_kept(cfg)
    checkpoint = cfg.get('default_hooks', {}).get('checkpoint')
    if checkpoint is None:
        return
    if checkpoint.get('max_keep_ckpts') == 1:
        checkpoint.max_keep_ckpts = 2
        print_log(
            'max_keep_ckpts is 2 instead of 1: the older checkpoint is deleted before the newer one is '
            'written, and a run that is interrupted then would have none',
            logger='current',
        )
    elsewhere = ('backend_args', 'file_client_args')
    if not any(checkpoint.get(key) for key in elsewhere) and '://' not in str(checkpoint.get('out_dir')):
        checkpoint.backend_args = dict(backend='whole_file')


def _warn_of_initial_values_kept(cfg: Config) -> None:
    backbone = cfg.get('model', {}).get('backbone') or {}
    if backbone.get('init_cfg') or cfg.get('load_from') or cfg.get('resume'):
        return
    kept = {
        'norm_eval=True keeps its batch norms from ever learning the statistics of its features': (
            backbone.get('norm_eval')
        ),
        f'frozen_stages={backbone.get("frozen_stages")} keeps parts of it random': (
            backbone.get('frozen_stages', -1) >= 0
        ),
    }
    if reasons := ' and '.join(reason for reason, holds in kept.items() if holds):
        print_log(
            f'The backbone starts from random weights, and {reasons}. Give it ImageNet weights '
            '(--cfg-options model.backbone.init_cfg.type=Pretrained '
            'model.backbone.init_cfg.checkpoint=FILE), or set model.backbone.norm_eval=False and '
            'model.backbone.frozen_stages=-1',
            logger='current',
            level=logging.WARNING,
        )
