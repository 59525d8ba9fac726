"""Random numbers that a resumed run draws as the uninterrupted one would have."""

import random
from typing import Any

import numpy as np
import torch
from mmengine.dataset.utils import worker_init_fn
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class SeedHook(Hook):
    """Makes all random numbers of a training a function of its seed, the process and the iteration.

    MMEngine seeds once, at the start, and a run that is resumed would begin with the first numbers
    again. There are two streams here. That of the model (stochastic depth, dropout, sampled boxes)
    is seeded at each iteration. That of the data is seeded at each epoch, and nothing else draws from
    it; so an iteration-based loop, which resumes by loading anew all data before its iteration,
    reproduces it even without worker processes. (The loop of onedl-mmengine passes over the indices of
    those data without loading them: a segmentor resumed there sees the same images, augmented otherwise.)
    Nothing need be saved, and each process of several has its own numbers.

    The workers of an epoch-based loop are to end with each epoch (``persistent_workers=False``):
    those that outlive it cannot be seeded.
    """

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        loader = runner.train_dataloader
        if getattr(loader.worker_init_fn, 'func', None) is worker_init_fn:
            # It gives workers the same numbers in each epoch; PyTorch's own seeds are drawn from ours.
            loader.worker_init_fn = None

    def before_train_epoch(self, runner: Runner) -> None:
        _seed(runner.seed, get_rank(), 0, runner.epoch)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self._data_stream = _random_state()
        _seed(runner.seed, get_rank(), 1, runner.iter)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        _set_random_state(self._data_stream)

    def before_val(self, runner: Runner) -> None:
        self._data_stream = _random_state()

    def after_val(self, runner: Runner) -> None:
        _set_random_state(self._data_stream)


def _seed(*numbers: int) -> None:
    for_python, for_numpy, for_torch = map(int, np.random.SeedSequence(numbers).generate_state(3))
    random.seed(for_python)
    np.random.seed(for_numpy)
    torch.manual_seed(for_torch)


def _random_state() -> tuple:
    # The generators of GPUs are left out: data are loaded on the CPU.
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _set_random_state(state: tuple) -> None:
    random.setstate(state[0])
    np.random.set_state(state[1])
    torch.set_rng_state(state[2])
