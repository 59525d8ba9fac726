"""Where a run takes its weights from: a checkpoint to resume, to fine-tune, or to test."""

import ast
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from ..checkpoint import CheckpointError, read_checkpoint
from ..errors import UserError
from .config_nodes import custom_hooks
from .own_best_hook import checkpoint_folder


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
        UserError: If the work directory speaks of a checkpoint that is gone.
    """
    if resume == 'auto':
        resume = latest_checkpoint(cfg)
        found = f'resuming from {resume}' if resume else 'no checkpoint yet, training from the start'
        print_log(f'--resume in {cfg.work_dir}: {found}', logger='current')
    if resume is None:
        return
    meta = _read_resumable(resume)['meta']
    _say_what_the_checkpoint_decides(cfg, meta.get('cfg', ''))
    _say_if_nothing_is_left(cfg, meta)
    seed = meta.get('seed')
    if seed is not None:
        # MMEngine takes it from the checkpoint too late, when the data have been shuffled with another.
        cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': seed}
    cfg.resume, cfg.load_from = True, resume
    _load_strictly(cfg)


def _say_what_the_checkpoint_decides(cfg: Config, before: str) -> None:
    """MMEngine restores optimizer and schedulers with all their settings, whatever the config says."""
    now, before = _optimization(cfg.pretty_text), _optimization(before)
    for name in sorted(before.keys() & now.keys()):
        if now[name] != before[name]:
            print_log(
                f'--resume goes on with {name} of the checkpoint, {before[name]}; what the config has now, '
                f'{now[name]}, has no effect. To train with that, start from the weights: --load-from.',
                logger='current',
                level=logging.WARNING,
            )


def _say_if_nothing_is_left(cfg: Config, meta: dict) -> None:
    loop = cfg.get('train_cfg') or {}
    for unit, name in (('epoch', 'max_epochs'), ('iter', 'max_iters')):
        if loop.get(name) and meta.get(unit, 0) >= loop[name]:
            print_log(
                f'--resume: nothing is left to train, the checkpoint is of {unit} {meta[unit]} and '
                f'train_cfg.{name} is {loop[name]}. To go on, raise that.',
                logger='current',
                level=logging.WARNING,
            )


def _optimization(config: str) -> dict[str, str]:
    """Settings of optimizer and schedule in the text of a config, which is read and not run."""
    try:
        statements = ast.parse(config).body
    except SyntaxError:  # it held an object that has no text, as configs made in Python may
        return {}
    values = {ast.unparse(s.targets[0]): s.value for s in statements if isinstance(s, ast.Assign)}
    found = {'param_scheduler': values.get('param_scheduler')}
    for keyword in getattr(values.get('optim_wrapper'), 'keywords', ()):
        if keyword.arg in ('optimizer', 'paramwise_cfg'):
            found[f'optim_wrapper.{keyword.arg}'] = keyword.value
    return {name: ast.unparse(value) for name, value in found.items() if value is not None}


def load_for_testing(cfg: Config, checkpoint: str) -> None:
    """Test the weights of a checkpoint, all of them.

    Raises:
        CheckpointError: If it cannot be read.
    """
    read_checkpoint(checkpoint)
    cfg.load_from = checkpoint
    cfg.resume = False
    _load_strictly(cfg)


def latest_checkpoint(cfg: Config) -> str | None:
    """The newest whole checkpoint of a run, passing over files that were cut short.

    Whatever the folder of the checkpoints, the path of the last one is written to the work directory.

    Raises:
        UserError: If a checkpoint was written, but none is left.
    """
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    work_dir = Path(cfg.work_dir)
    folders = list(dict.fromkeys((checkpoint_folder(cfg.work_dir, hook.get('out_dir')), work_dir)))
    files = _checkpoints(folders, hook.get('filename_tmpl'))
    pointer = work_dir / 'last_checkpoint'
    if pointer.is_file():
        # MMEngine writes it after the checkpoint; file times may be those of a copy. The folder it names
        # may be that from which the run was moved or copied.
        last = pointer.read_text().strip()
        files = [*(str(folder / Path(last).name) for folder in folders), last, *files]
    for file in dict.fromkeys(files):
        if '://' not in file and not Path(file).is_file():
            continue
        try:
            _read_resumable(file)
        except CheckpointError as error:
            print_log(f'{file} is passed over: {error}', logger='current')
        else:
            return file
    if pointer.is_file():
        raise UserError(
            f'--resume: {pointer} names {last!r} as the last checkpoint of the run, but neither there nor in '
            f'{" or ".join(map(str, folders))} is one that can be resumed. Give its file with --resume FILE, '
            'or choose another --work-dir to train from the start.'
        )
    return None


def _checkpoints(folders: Sequence[Path], template: str | None) -> list[str]:
    """The files in folders that are named as the checkpoint hook names them, the newest first."""
    names = [template] if template else ['epoch_{}.pth', 'iter_{}.pth']
    # Of the number, `re.escape` makes \{\}.
    pattern = '|'.join(re.sub(r'\\\{.*?\\\}', r'\\d+', re.escape(name)) for name in names)
    found = [file for folder in folders if folder.is_dir() for file in folder.iterdir()]
    found = [file for file in found if file.is_file() and re.fullmatch(pattern, file.name)]
    return [str(file) for file in sorted(found, key=lambda file: file.stat().st_mtime, reverse=True)]


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
    hooks = [h for h in custom_hooks(cfg) if h.get('type') != 'StrictLoadHook']
    cfg.custom_hooks = [*hooks, dict(type='StrictLoadHook', **options)]
