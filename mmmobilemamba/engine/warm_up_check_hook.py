"""Warm-ups that would not leave the training much time."""

import logging

from mmengine.hooks import Hook
from mmengine.optim import _ParamScheduler
from mmengine.registry import HOOKS
from mmengine.runner import Runner

# In the names of schedules that raise a value in the beginning.
WARM_UPS = ('Linear', 'Constant', 'Warmup')


@HOOKS.register_module()
class WarmUpCheckHook(Hook):
    """Warns of a training so short that most of it is warm-up, at a fraction of the learning rate.

    Published schedules warm up for hundreds of iterations, which small data sets may not have.
    """

    def before_train(self, runner: Runner) -> None:
        """Compare the warm-ups, which count iterations, with the training."""
        schedulers = runner.param_schedulers or []
        if isinstance(schedulers, dict):  # of several optimizers
            schedulers = [scheduler for each in schedulers.values() for scheduler in each]
        for number, scheduler in enumerate(schedulers):
            if _warms_up(scheduler) and not scheduler.by_epoch and 2 * scheduler.end > runner.max_iters:
                runner.logger.log(
                    logging.WARNING,
                    f'The training has {runner.max_iters} iterations, of which the learning rate is still '
                    f'warming up in the first {scheduler.end}. Train longer, or set --cfg-options '
                    f'param_scheduler.{number}.end={max(1, runner.max_iters // 20)}',
                )


def _warms_up(scheduler: _ParamScheduler) -> bool:
    known = any(word in type(scheduler).__name__ for word in WARM_UPS)
    start = getattr(scheduler, 'start_factor', getattr(scheduler, 'factor', 0.0))
    return known and start < getattr(scheduler, 'end_factor', 1.0)
