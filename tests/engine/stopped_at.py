"""A hook for test_resume.py, in its process and in others."""

import os

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class StoppedAt(Hook):
    """Sends its own process a signal in the given iteration, counted from 0."""

    def __init__(self, iteration: int, signal: int) -> None:
        self.iteration, self.signal = iteration, signal

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter == self.iteration:
            os.kill(os.getpid(), self.signal)
