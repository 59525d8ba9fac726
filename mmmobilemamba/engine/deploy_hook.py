"""Testing with the network folded for deployment."""

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..deploy import switch_to_deploy


@HOOKS.register_module()
class DeployHook(Hook):
    """Folds the backbone once the checkpoint to test is loaded; see :func:`switch_to_deploy`."""

    def before_test(self, runner: Runner) -> None:
        switch_to_deploy(runner.model)
