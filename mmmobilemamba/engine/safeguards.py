"""What guards every training run."""

import logging
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from ..errors import UserError
from .config_nodes import custom_hooks, type_name
from .warm_up_check_hook import WARM_UPS

HOOKS = ('SeedHook', 'OwnBestHook', 'StrideCheckHook', 'WarmUpCheckHook', 'FiniteLossHook')
ENDLESS = 10**9  # as MMEngine's schedules are by default


def add_safeguards(cfg: Config) -> None:
    """Let a run survive interruptions, and stop before its weights are spoilt.

    See :class:`SeedHook`, :class:`OwnBestHook`, :class:`WholeFileBackend`, :class:`StrideCheckHook`,
    :class:`WarmUpCheckHook` and :class:`FiniteLossHook`.

    Raises:
        UserError: If there is nothing to train on, no length of the training, or no such metric.
    """
    if not cfg.get('train_dataloader'):
        raise UserError('The config has no train_dataloader, without which nothing can be trained.')
    for name in ('max_epochs', 'max_iters'):
        length = (cfg.get('train_cfg') or {}).get(name, 1)
        if not isinstance(length, int) or length < 1:
            raise UserError(f'train_cfg.{name} is {length!r}; allowed are integers from 1 up.')
    hooks = [h for h in custom_hooks(cfg) if h.get('type') not in HOOKS]
    cfg.custom_hooks = [*hooks, *(dict(type=name) for name in HOOKS)]
    if cfg.train_dataloader.get('persistent_workers'):
        print_log(
            'persistent_workers of the train_dataloader is False instead of True: workers that outlive an '
            'epoch cannot be seeded, and a run that is resumed would see other data',
            logger='current',
        )
    cfg.train_dataloader.persistent_workers = False
    _warn_of_initial_values_kept(cfg)
    _warn_of_schedule_of_other_length(cfg)
    checkpoint = (cfg.get('default_hooks') or {}).get('checkpoint')
    _check_metrics(cfg, (checkpoint or {}).get('save_best'))
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


def _check_metrics(cfg: Config, save_best: str | list[str] | None) -> None:
    """Compare names of metrics, which are first read after validation, with those that there are."""
    evaluators = cfg.get('val_evaluator') or []
    names: set[str] = set()
    for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
        given = _METRICS.get(type_name(evaluator), lambda _: None)(evaluator)
        if given is None:
            return
        names |= given
    best = [save_best] if isinstance(save_best, str) else save_best or []
    if wrong := [name for name in best if name not in names and name != 'auto']:
        raise UserError(
            f'default_hooks.checkpoint.save_best is {", ".join(wrong)}, but the evaluation gives '
            f'{", ".join(sorted(names)) or "nothing, for there is none"}.'
        )


def _coco_metrics(evaluator: dict[str, Any]) -> set[str] | None:
    kinds = evaluator.get('metric', 'bbox')
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if evaluator.get('classwise') or evaluator.get('metric_items') or not {*kinds} <= {'bbox', 'segm'}:
        return None
    items = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')
    return {f'{evaluator.get("prefix") or "coco"}/{kind}_{item}' for kind in kinds for item in items}


def _iou_metrics(evaluator: dict[str, Any]) -> set[str]:
    given = evaluator.get('iou_metrics', ['mIoU'])
    given = [given] if isinstance(given, str) else given
    known = dict(mIoU=['mIoU', 'mAcc'], mDice=['mDice', 'mAcc'], mFscore=['mFscore', 'mPrecision', 'mRecall'])
    if wrong := [name for name in given if name not in known]:
        raise UserError(f'val_evaluator.iou_metrics has {", ".join(wrong)}; allowed are {", ".join(known)}.')
    prefix = f'{evaluator["prefix"]}/' if evaluator.get('prefix') else ''
    return {prefix + name for metric in given for name in ('aAcc', *known[metric])}


# What those give that configs use; of others it is not known.
_METRICS = dict(CocoMetric=_coco_metrics, IoUMetric=_iou_metrics)


def _warn_of_initial_values_kept(cfg: Config) -> None:
    model = cfg.get('model', {})
    backbone = model.get('backbone') or {}
    # MMSegmentation's models take the backbone's weights as `pretrained` too.
    if any((backbone.get('init_cfg'), model.get('pretrained'), cfg.get('load_from'), cfg.get('resume'))):
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


def _warn_of_schedule_of_other_length(cfg: Config) -> None:
    loop = cfg.get('train_cfg') or {}
    option = 'max_epochs' if 'max_epochs' in loop else 'max_iters'
    length = loop.get(option)
    given = cfg.get('param_scheduler') or []
    schedules = {
        f'param_scheduler.{i}': schedule
        for i, schedule in enumerate(given if isinstance(given, list) else [])
        if schedule.get('by_epoch', True) == (option == 'max_epochs')
        and not any(word in str(schedule.type) for word in WARM_UPS)
    }
    end = max((schedule.get('end') or 0 for schedule in schedules.values()), default=0)
    if not length or end in (0, length) or end >= ENDLESS:
        return
    settings = []
    for name, schedule in schedules.items():
        new_end = max(1, round(schedule.get('end', end) * length / end))
        new_begin = min(round(schedule.get('begin', 0) * length / end), new_end - 1)
        # Most T_max are the distance from begin to end.
        new = dict(begin=new_begin, end=new_end, T_max=new_end - new_begin)
        settings += [f'{name}.{key}={value}' for key, value in new.items() if schedule.get(key)]
    print_log(
        f'train_cfg.{option} is {length}, but the schedule of the learning rate ends at {end}. To let it end '
        f'with the training, set --cfg-options {" ".join(settings)}',
        logger='current',
        level=logging.WARNING,
    )
