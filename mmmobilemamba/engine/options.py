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


def _follow(cfg: Config, name: str) -> tuple[int, Any]:
    """How many words of a dotted name lead on in the config, and where the last of these leads."""
    node: Any = cfg
    words = name.split('.')
    for i, word in enumerate(words):
        if isinstance(node, list) and word.isdigit() and int(word) < len(node):
            node = node[int(word)]
        elif isinstance(node, dict | Config) and word in node:
            node = node[word]
        else:
            return i, node
    return len(words), node


def _say_what_is_new(cfg: Config, name: str) -> None:
    """Log a setting below the top that the config does not have, as a misspelt one would not have."""
    words = name.split('.')
    known, node = _follow(cfg, name)
    if 0 < known < len(words) and isinstance(node, dict):
        similar = get_close_matches(words[known], map(str, node))
        print_log(
            f'--cfg-options {name} adds {words[known]!r} to {".".join(words[:known])}, which had no such '
            f'setting{"; did you mean " + " or ".join(map(repr, similar)) + "?" if similar else "."}',
            logger='current',
            level=logging.WARNING,
        )


def _misfit(cfg: Config, name: str) -> str | None:
    """Why nothing can be set in this place."""
    words = name.split('.')
    known, node = _follow(cfg, name)
    where = '.'.join(words[:known])
    if known == len(words):
        if words[-1].isdigit():
            return f'entries of a list cannot be replaced one by one. Give {".".join(words[:-1])} as a whole.'
    elif isinstance(node, list):
        return f'{where} is a list, whose entries have the numbers 0 to {len(node) - 1}.'
    elif not isinstance(node, dict | Config):
        return f'{where} is {node!r}, with no settings in it. Give its new value as a whole.'
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
