"""A hook for test_resume.py, in its process and in others."""

import signal

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class StoppedAt(Hook):
    """Raises a signal in the given iteration, counted from 0."""

    def __init__(self, iteration: int, number: int) -> None:
        self.iteration, self.number = iteration, number

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter == self.iteration:
            # To this very thread: elsewhere KeyboardInterrupt may come up where a library swallows it.
            signal.raise_signal(self.number)
