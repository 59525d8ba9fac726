"""Changes to a config from the command line."""

import inspect
import logging
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import Runner

from ..datasets.layout import shorten
from ..errors import UserError

# What a run reads of its config; all else there are helper variables, already put to use in the file.
SETTINGS = (
    *(name for name in inspect.signature(Runner).parameters if name != 'cfg'),
    *('runner_type', 'model_wrapper_cfg', 'find_unused_parameters', 'sync_bn', 'compile'),
    *('activation_checkpointing', 'efficient_conv_bn_eval', 'tta_model', 'tta_pipeline'),
)


def merge_options(cfg: Config, options: dict[str, Any]) -> None:
    """Change settings of a config.

    Args:
        cfg: The config to change.
        options: Values by dotted names, as ``--cfg-options`` gives them.

    Raises:
        UserError: If one has no place in the config, or would change nothing.
    """
    for name, value in options.items():
        top = name.split('.')[0]
        if top not in SETTINGS:
            places = list(_places(cfg, name.split('.')[-1])) or SETTINGS
            raise UserError(
                f'--cfg-options {name}={value} would change nothing: a run does not read {top!r}, '
                f'which may be a helper variable of the config file. Settings are {", ".join(places)}.'
            )
    for name in options:
        _say_what_is_new(cfg, name)
    try:
        cfg.merge_from_dict(options)
    except (AttributeError, KeyError, TypeError) as error:
        reasons = [
            f'--cfg-options {name}={value} does not fit: {misfit}'
            for name, value in options.items()
            if (misfit := _misfit(cfg, name))
        ]
        given = shorten(f'{name}={value}' for name, value in options.items())
        raise UserError(reasons[0] if reasons else f'--cfg-options {given}: {error}') from error


def _say_what_is_new(cfg: Config, name: str) -> None:
    """Log a setting below the top that the config does not have, as a misspelt one would not have."""
    node: Any = cfg
    parts = name.split('.')
    for i, part in enumerate(parts):
        if not isinstance(node, dict | Config):
            return
        if part not in node:
            if i > 0:
                similar = get_close_matches(part, map(str, node))
                print_log(
                    f'--cfg-options {name} adds {part!r} to {".".join(parts[:i])}, which had no such setting'
                    + (f'; did you mean {" or ".join(map(repr, similar))}?' if similar else '.'),
                    logger='current',
                    level=logging.WARNING,
                )
            return
        node = node[part]


def _misfit(cfg: Config, name: str) -> str | None:
    """Why nothing can be set in this place."""
    node: Any = cfg
    parts = name.split('.')
    for i, part in enumerate(parts):
        where = '.'.join(parts[:i])
        if isinstance(node, list):
            if not (part.isdigit() and int(part) < len(node)):
                return f'{where} is a list, whose entries have the numbers 0 to {len(node) - 1}.'
            node = node[int(part)]
        elif not isinstance(node, dict | Config):
            return f'{where} is {node!r}, with no settings in it. Give its new value as a whole.'
        elif part not in node:
            return None
        else:
            node = node[part]
    if parts[-1].isdigit():
        return f'entries of a list cannot be replaced one by one. Give {".".join(parts[:-1])} as a whole.'
    return None


def _places(node: Any, key: str, prefix: str = '') -> Iterator[str]:
    """Dotted names of the settings called ``key``."""
    items = node.items() if isinstance(node, dict | Config) else enumerate(node)
    for name, value in items:
        if not prefix and name not in SETTINGS:
            continue
        if name == key:
            yield f'{prefix}{name}'
        if isinstance(value, dict | list):
            yield from _places(value, key, f'{prefix}{name}.')
