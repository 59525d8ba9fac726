"""Where a run takes its weights from: a checkpoint to resume, to fine-tune, or to test."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from ..checkpoint import CheckpointError, read_checkpoint
from ..errors import UserError


def load_for_training(cfg: Config, load_from: str | None = None, reinit: Sequence[str] = ()) -> None:
    """Train from the weights of a checkpoint, all of them but those under ``reinit``.

    Args:
        cfg: The config to change.
        load_from: The checkpoint; the config's own ``load_from`` if None.
        reinit: Beginnings of parameter names that keep their initial values, for example
            'bbox_head.retina_cls' to train on other classes.

    Raises:
        UserError: If ``reinit`` is given without a checkpoint.
        CheckpointError: If the checkpoint cannot be read.
    """
    if load_from is not None:
        cfg.load_from = load_from
    if cfg.get('load_from'):
        read_checkpoint(cfg.load_from)
    elif reinit:
        raise UserError('--reinit goes with --load-from: without it, all weights are initial ones.')
    _load_strictly(cfg, reinit=tuple(reinit))


def resume_training(cfg: Config, resume: str | None) -> None:
    """Continue a run: weights, optimizer, schedule and counters.

    Args:
        cfg: The config to change.
        resume: A checkpoint, 'auto' for the newest one of the work directory, or None. With 'auto'
            and no checkpoint yet, the run begins as it would without.

    Raises:
        CheckpointError: If the checkpoint cannot be read, or is not one of a training run.
    """
    if resume == 'auto':
        resume = latest_checkpoint(cfg.work_dir)
        found = f'resuming from {resume}' if resume else 'no checkpoint yet, training from the start'
        print_log(f'--resume in {cfg.work_dir}: {found}', logger='current')
    if resume is None:
        return
    seed = _read_resumable(resume)['meta'].get('seed')
    if seed is not None:
        # MMEngine takes it from the checkpoint too late, when the data have been shuffled with another.
        cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': seed}
    cfg.resume, cfg.load_from = True, resume
    _load_strictly(cfg)


def load_for_testing(cfg: Config, checkpoint: str) -> None:
    """Test the weights of a checkpoint, all of them.

    Raises:
        CheckpointError: If it cannot be read.
    """
    read_checkpoint(checkpoint)
    cfg.load_from = checkpoint
    cfg.resume = False
    _load_strictly(cfg)


def latest_checkpoint(work_dir: str | Path) -> str | None:
    """The newest whole checkpoint of a run, passing over files that were cut short."""
    work_dir = Path(work_dir)
    files = [p for p in work_dir.glob('*.pth') if re.fullmatch(r'(epoch|iter)_\d+', p.stem)]
    files.sort(key=lambda p: p.stat().st_mtime, reverse=True)
    pointer = work_dir / 'last_checkpoint'
    if pointer.is_file():
        # MMEngine writes it after the checkpoint; file times may be those of a copy.
        last = Path(pointer.read_text().strip()).name
        files.sort(key=lambda p: p.name != last)
    for file in files:
        try:
            _read_resumable(str(file))
        except CheckpointError as error:
            print_log(f'{file} is passed over: {error}', logger='current')
        else:
            return str(file)
    return None


def _read_resumable(filename: str) -> dict[str, Any]:
    checkpoint = read_checkpoint(filename)
    missing = [k for k in ('meta', 'state_dict', 'optimizer', 'message_hub') if k not in checkpoint]
    if missing:
        raise CheckpointError(
            f'{filename} holds no {", ".join(missing)}, so a run cannot be resumed from it. To '
            'train anew from its weights, use --load-from.'
        )
    return checkpoint


def _load_strictly(cfg: Config, **options: Any) -> None:
    hooks = [h for h in cfg.get('custom_hooks') or [] if h.get('type') != 'StrictLoadHook']
    cfg.custom_hooks = [*hooks, dict(type='StrictLoadHook', **options)]
