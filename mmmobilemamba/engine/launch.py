"""One process or several, on GPUs or on a CPU."""

import atexit
import gc
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
from mmengine.config import Config
from mmengine.dist import init_dist, is_distributed, is_main_process
from mmengine.logging import MMLogger, print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.utils.dl_utils import set_multi_processing

from ..errors import UserError
from ..malloc import keep_freed_memory
from .config_nodes import type_name

# As MMEngine, MMCV and PyTorch call it.
SYNC_BN = ('SyncBN', 'MMSyncBN', 'SyncBatchNorm')
T = TypeVar('T')


def init_processes(cfg: Config, launcher: str, local_rank: int = 0) -> None:
    """Prepare for the launcher that started this process, and begin the communication of several.

    MMEngine's runner would begin that of GPU processes later, and knows none of a CPU.

    Args:
        cfg: The config to change.
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'.
        local_rank: Number of this process on its machine, where the launcher sets no variable.

    Raises:
        UserError: If the launcher did not start this process, or there are fewer GPUs than
            processes.
    """
    os.environ.setdefault('LOCAL_RANK', str(local_rank))
    cfg.launcher = launcher
    if not torch.cuda.is_available():
        keep_freed_memory()
    if launcher == 'none':
        return
    if launcher == 'pytorch' and 'RANK' not in os.environ:
        raise UserError(
            '--launcher pytorch is for processes that torchrun starts. Use tools/dist_train.sh or '
            'tools/dist_test.sh, or leave --launcher out for a single process.'
        )
    gpus = torch.cuda.device_count()
    if launcher == 'pytorch' and 0 < gpus <= int(os.environ['LOCAL_RANK']):
        raise UserError(
            f'{os.environ.get("LOCAL_WORLD_SIZE", "More")} processes were started on a machine '
            f'with {gpus} GPUs. Start one process per GPU.'
        )
    if gpus == 0:
        _init_cpu_processes(cfg, launcher)
    elif 'runner_type' not in cfg:  # Other runners may have a way of their own.
        env = cfg.get('env_cfg') or {}
        set_multi_processing(**env.get('mp_cfg', {}), distributed=True)
        init_dist(launcher, **env.get('dist_cfg', {}))


def in_first_process(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in the first of all processes alone, and give its result to all.

    An error ends all processes, and the first alone tells of it. Call it after :func:`init_processes`.

    Args:
        function: Takes as long as it likes. Its result can be pickled, and is not None.
        arguments: For the function.
    """
    if not is_distributed():
        return function(*arguments)
    # Gloo waits without a GPU, and as long as is needed.
    group = torch.distributed.new_group(backend='gloo', timeout=timedelta(days=2))
    result = [None]
    try:
        if is_main_process():
            result = [function(*arguments)]
    finally:
        torch.distributed.broadcast_object_list(result, group=group)
    if result[0] is None:
        # Launchers end all processes at the end of one; so wait for the first, which is to tell of its error.
        with suppress(RuntimeError):
            torch.distributed.barrier(group)
        sys.exit(1)
    torch.distributed.destroy_process_group(group)
    return result[0]


def _init_cpu_processes(cfg: Config, launcher: str) -> None:
    if launcher != 'pytorch':
        raise UserError(
            f'--launcher {launcher} needs a GPU for every process, and none was found. On a CPU, '
            'use tools/dist_train.sh (--launcher pytorch).'
        )
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group('gloo')
        atexit.register(_end_cpu_processes)
    # Without a device number, which DistributedDataParallel takes for a GPU's.
    cfg.model_wrapper_cfg = {
        'type': 'MMDistributedDataParallel',
        'broadcast_buffers': False,
        'find_unused_parameters': cfg.get('find_unused_parameters', False),
        **(cfg.get('model_wrapper_cfg') or {}),
        'device_ids': None,
    }
    changes = []
    if replaced := _replace_sync_bn(cfg.model):
        changes.append(f'{replaced} norm_cfg became BN')
    if sync_bn := cfg.get('sync_bn'):
        cfg.sync_bn = None
        changes.append(f'sync_bn={sync_bn!r} is not applied')
    if changes:
        print_log(f'SyncBN does not work on a CPU: {", ".join(changes)}', logger='current')


def _end_cpu_processes() -> None:
    """Stop gloo's threads, which abort the process if they are still there when Python ends."""
    # A model that DistributedDataParallel wrapped is held by reference cycles, and keeps them.
    gc.collect()
    torch.distributed.destroy_process_group()


def _replace_sync_bn(node: Any) -> int:
    if isinstance(node, list | tuple):
        return sum(map(_replace_sync_bn, node))
    if not isinstance(node, dict):
        return 0
    replaced = int(type_name(node) in SYNC_BN)
    if replaced:
        node['type'] = 'BN'
    return replaced + sum(map(_replace_sync_bn, node.values()))


def keep_early_log() -> None:
    """Keep what is logged from now on for the log file, which a run does not have before it is built."""
    logger = MMLogger.get_current_instance()
    if not any(isinstance(handler, logging.FileHandler | _EarlyRecords) for handler in logger.handlers):
        logger.addHandler(_EarlyRecords())


class _EarlyRecords(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self._records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(record)

    def hand_over(self, logger: MMLogger) -> None:
        """To the files of another logger; on the screen, the text that a run begins with buries warnings."""
        for record in self._records:
            for handler in logger.handlers:
                if isinstance(handler, logging.FileHandler) or record.levelno >= logging.WARNING:
                    handler.handle(record)


def build_runner(cfg: Config) -> Runner:
    """The runner of a config, of mmengine's class or the config's own ``runner_type``.

    Raises:
        UserError: If it would train without a single batch.
    """
    early = MMLogger.get_current_instance()
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    for handler in [handler for handler in early.handlers if isinstance(handler, _EarlyRecords)]:
        early.removeHandler(handler)
        handler.hand_over(runner.logger)
    if cfg.get('train_cfg') and runner.max_iters == 0:
        loader = runner.train_dataloader
        raise UserError(
            f'Nothing would be trained: the {len(loader.dataset)} samples of the data set fill no batch of '
            f'{loader.batch_size}, and train_dataloader.drop_last leaves out batches that are not full. Set '
            'train_dataloader.batch_size lower.'
        )
    return runner
