"""Changes to a config from the command line, and a look at all its settings."""

import inspect
import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import Runner

from ..datasets.layout import shorten
from ..errors import UserError
from .parameters import parameters_of, parts

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
        _report_what_is_new(cfg, name, options)
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


def report_overruled(cfg: Config, options: dict[str, Any] | None) -> None:
    """Log the settings of ``--cfg-options`` that another option, or the data set, has changed after them.

    Args:
        cfg: The config as it will be run.
        options: Values by dotted names.
    """
    for name, value in (options or {}).items():
        known, now = _follow(cfg, name)
        if known == len(name.split('.')) and not isinstance(now, dict) and _plain(now) != _plain(value):
            print_log(
                f'{name} is {now!r}: other options or the data set decide that, and the {value!r} of '
                '--cfg-options has no effect',
                logger='current',
                level=logging.WARNING,
            )


def _plain(value: Any) -> Any:
    return list(map(_plain, value)) if isinstance(value, list | tuple) else value


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


def check_settings(cfg: Config) -> None:
    """Look for settings that what is built does not have, in all of a config.

    MMEngine's own error would be a traceback, or none: what it does not read at the top has no effect.

    Raises:
        UserError: If it is certain that there is no such setting.
    """
    for name in cfg:
        # Most are helper variables, and some of those have similar names.
        if name not in SETTINGS and (similar := get_close_matches(name, SETTINGS, 1, 0.9)):
            print_log(
                f'{name} in {cfg.filename} has no effect on a run by itself; did you mean {similar[0]}?',
                logger='current',
                level=logging.WARNING,
            )
    hooks = cfg.get('default_hooks') or {}
    if not isinstance(hooks, dict):
        raise UserError(f'default_hooks is {hooks!r}; allowed is a dict of hooks by their names.')
    for name, hook in hooks.items():
        if isinstance(hook, dict) and 'type' not in hook:
            similar = _similar(name, [key for key in hooks if key != name])
            raise UserError(
                f'default_hooks.{name} has no type, and so is no hook{similar} A new one needs '
                f'default_hooks.{name}.type.'
            )
    for part in parts(cfg):
        takes = parameters_of(part)
        for name in part.settings if takes and takes.are_all else ():
            if name not in takes:
                raise UserError(
                    f'{".".join(part.place)}.{name}: {takes.of} has no setting {name!r}'
                    f'{_similar(name, takes.names)} It has {shorten(takes.names, 16)}.'
                )


def _similar(name: str, names: Iterable[str]) -> str:
    similar = get_close_matches(str(name), names)
    return f'; did you mean {" or ".join(map(repr, similar))}?' if similar else '.'


def _report_what_is_new(cfg: Config, name: str, options: dict[str, Any]) -> None:
    """Log a setting below the top that the config does not have, as a misspelt one would not have."""
    words = name.split('.')
    known, node = _follow(cfg, name)
    if not 0 < known < len(words) or not isinstance(node, dict) or words[:known] == ['default_hooks']:
        return
    place, new = '.'.join(words[:known]), words[known]
    part = next((p for p in parts(cfg) if '.'.join(p.place) == place), None)
    if part is not None and f'{place}.type' in options:
        part = replace(part, settings=dict(type=options[f'{place}.type']))
    takes = part and parameters_of(part)
    if takes and (takes.are_all or new in takes):  # check_settings refuses the others
        return
    similar = _similar(new, {*map(str, node), *(takes.names if takes else ())})
    print_log(
        f'--cfg-options {name} adds {new!r} to {place}, which had no such setting{similar}',
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
