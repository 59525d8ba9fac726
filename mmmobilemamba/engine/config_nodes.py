"""Parts of a config, whether its types are names or, as in MMEngine's newer style, classes."""

from typing import Any

from mmengine.config import Config

from ..errors import UserError


def type_name(node: dict[str, Any]) -> str:
    """Name of a node's ``type`` without scope and module; '' if it has none."""
    kind = node.get('type', '')
    return kind.split('.')[-1] if isinstance(kind, str) else getattr(kind, '__name__', str(kind))


def custom_hooks(cfg: Config) -> list[dict[str, Any]]:
    """The config's own hooks.

    Raises:
        UserError: If they are no list of configs of hooks.
    """
    hooks = cfg.get('custom_hooks') or []
    if not isinstance(hooks, list | tuple) or not all(isinstance(hook, dict) for hook in hooks):
        raise UserError(
            f"custom_hooks is {hooks!r}; allowed is a list of hooks, each like dict(type='EMAHook'). Write "
            'it into a config that inherits this one.'
        )
    return list(hooks)


def innermost_test_dataset(cfg: Config) -> dict[str, Any]:
    """The data set that a config tests on, without what wraps it.

    Raises:
        UserError: If it tests on several, or on none.
    """
    dataset = (cfg.get('test_dataloader') or {}).get('dataset')
    while dataset and 'dataset' in dataset:
        dataset = dataset['dataset']
    if not isinstance(dataset, dict) or 'datasets' in dataset:
        raise UserError('This needs one data set in the test_dataloader of the config, not several or none.')
    return dataset
