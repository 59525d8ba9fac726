"""Testing with the network folded for deployment."""

from mmengine.hooks import EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..deploy import switch_to_deploy


@HOOKS.register_module()
class DeployHook(Hook):
    """Folds the backbone once the checkpoint to test is loaded; see :func:`switch_to_deploy`."""

    def before_test(self, runner: Runner) -> None:
        switch_to_deploy(runner.model)
        for hook in runner.hooks:
            if isinstance(hook, EMAHook):
                # It swaps its tensors with those of the model, one by one, before the first batch.
                switch_to_deploy(hook.ema_model)
