"""Training stops at a loss that is not finite."""

from collections.abc import Iterator
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from ..datasets.layout import shorten
from ..errors import UserError


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stops the training where a term of the loss is NaN or infinite, before it reaches the weights.

    MMEngine's ``CheckInvalidLossHook`` looks at the sum, after the optimizer's step, and every 50
    iterations. Gradients are not looked at: those of float16 may overflow, and the loss scaler then
    leaves the step out.
    """

    def before_train(self, runner: Runner) -> None:
        self._runner = runner
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._handle = model.register_forward_hook(self._check, with_kwargs=True)

    def after_train(self, runner: Runner) -> None:
        self._handle.remove()

    def _check(self, model: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        """Look at what the model returns to ``train_step``.

        Raises:
            UserError: If a term is not finite. It names the iteration, the terms and the images.
        """
        if kwargs.get('mode') != 'loss':
            return
        terms = dict(_terms(output))
        if not terms or torch.stack(list(terms.values())).isfinite().all():
            return
        runner = self._runner
        epoch = f' (epoch {runner.epoch + 1})' if runner.max_epochs > 1 else ''
        bad = ', '.join(f'{name} is {x.item()}' for name, x in terms.items() if not x.isfinite())
        samples = kwargs.get('data_samples') or ()
        images = [str(getattr(sample, 'img_path', 'unknown')) for sample in samples]
        spoilt = [name for name, x in model.named_parameters() if not x.isfinite().all()]
        raise UserError(
            f'The loss of iteration {runner.iter + 1}{epoch} is not finite: {bad}. '
            f'Images: {", ".join(images)}. '
            + (
                f'The step before has spoilt the weights: {shorten(spoilt)}. Resume from an older checkpoint '
                'with a lower learning rate (optim_wrapper.optimizer.lr) or with gradient clipping '
                '(optim_wrapper.clip_grad.max_norm).'
                if spoilt
                else 'The weights are as before this iteration. Look at these images and their annotations; '
                'else lower the learning rate (optim_wrapper.optimizer.lr) or, where it is of float16, the '
                'precision is too low: optim_wrapper.dtype=bfloat16. Then continue with --resume.'
            )
        )


def _terms(losses: dict[str, Tensor | list[Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """What BaseModel.parse_losses adds up: the mean of each tensor, those of lists by number."""
    for name, value in losses.items():
        if 'loss' not in name:
            continue
        if isinstance(value, Tensor):
            yield name, value.detach().mean().float()
        else:
            yield from ((f'{name}[{i}]', x.detach().mean().float()) for i, x in enumerate(value))
