"""Which channel numbers of a config follow from the variant of MobileMamba in it."""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from ..arch import ARCHS, Arch
from ..backbones import MobileMamba
from ..errors import UserError
from .config_nodes import type_name


@dataclass
class Link:
    """A setting that follows from the channels of the backbone.

    Attributes:
        name: The setting as ``--cfg-options`` names it.
        owner: Dict that holds it.
        key: Its key there.
        right: Its right value.
    """

    name: str
    owner: dict[str, Any]
    key: str
    right: int | list[int]

    @property
    def given(self) -> int | list[int]:
        """Its present value."""
        value = self.owner[self.key]
        return list(value) if isinstance(value, list | tuple) else value


def set_arch(cfg: Config, arch: str) -> None:
    """Switch a config to another variant of MobileMamba, and the channels of necks and heads with it.

    Args:
        cfg: The config to change, of our models or of others with a MobileMamba backbone.
        arch: Name of the variant: 't2', 't4', 's6', 'b1', 'b2' or 'b4'.

    Raises:
        UserError: If there is no such variant, or no MobileMamba in the config, or another of its
            settings is wrong.
    """
    if arch not in ARCHS:
        raise UserError(f'--arch {arch} is unknown. Choose one of {", ".join(ARCHS)}.')
    parents = list(_with_mobilemamba(cfg.get('model'), 'model'))
    if not parents:
        raise UserError('--arch chooses the variant of a MobileMamba backbone, and the config has none.')
    for _, parent in parents:
        parent['backbone']['arch'] = arch
    _check_backbones(cfg)
    changed = []
    for name, parent in parents:
        for link in list(_links(name, parent)):
            if link.given != link.right:
                changed.append(f'{link.name}={link.right}')
                link.owner[link.key] = link.right
    print_log(f'--arch {arch}: {", ".join(changed) or "no channels differ"}', logger='current')


def check_channels(cfg: Config) -> None:
    """Check the MobileMamba of a config, and that necks and heads expect the channels that it gives.

    Raises:
        UserError: If a setting of the backbone has no such name or value, or a neck or head expects
            another number of channels; it says the right one.
    """
    _check_backbones(cfg)
    for name, parent in _with_mobilemamba(cfg.get('model'), 'model'):
        wrong = [link for link in _links(name, parent) if link.given != link.right]
        if wrong:
            backbone = parent['backbone']
            given = '\n'.join(f'  {x.name}={x.given}, which must be {x.right}' for x in wrong)
            hint = ''
            if isinstance(backbone['arch'], str):
                hint = f' On the command line, --arch {backbone["arch"]} sets them all.'
            raise UserError(
                f'MobileMamba {backbone["arch"]!r} with out_indices={_out_indices(backbone)} gives '
                f'maps of {_out_channels(backbone)} channels, but the config has\n{given}\n'
                f'Change these settings, or arch and out_indices of the backbone.{hint}'
            )


def _check_backbones(cfg: Config) -> None:
    """Build every MobileMamba once, which takes a tenth of a second, and tell what is wrong with it."""
    for name, parent in _with_mobilemamba(cfg.get('model'), 'model'):
        settings = {key: _plain(value) for key, value in parent['backbone'].items()}
        for key in ('type', '_scope_', 'init_cfg'):
            settings.pop(key, None)
        try:
            MobileMamba(**settings)
        except TypeError as error:
            reason = str(error).removeprefix('MobileMamba.__init__() ')
            allowed = list(inspect.signature(MobileMamba).parameters)
            raise UserError(f'{name}.backbone: {reason}. Its settings are {", ".join(allowed)}.') from error
        except ValueError as error:
            raise UserError(f'{name}.backbone: {str(error).rstrip(".")}.') from error


def _with_mobilemamba(node: Any, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The models at and below a node of the config whose backbone is a MobileMamba."""
    if isinstance(node, list | tuple):
        for i, item in enumerate(node):
            yield from _with_mobilemamba(item, f'{name}.{i}')
    elif isinstance(node, dict):
        backbone = node.get('backbone')
        if isinstance(backbone, dict) and type_name(backbone) == 'MobileMamba':
            yield name, node
        for key, value in node.items():
            yield from _with_mobilemamba(value, f'{name}.{key}')


def _out_indices(backbone: dict[str, Any]) -> list[int]:
    return list(backbone.get('out_indices', (1, 2, 3)))


def _out_channels(backbone: dict[str, Any]) -> list[int]:
    widths = Arch.create(_plain(backbone['arch'])).widths
    return [(widths[0], *widths)[i] for i in _out_indices(backbone)]


def _plain(arch: Any) -> Any:
    return dict(arch) if isinstance(arch, dict) else arch


def _links(name: str, parent: dict[str, Any]) -> Iterator[Link]:
    channels = _out_channels(parent['backbone'])
    neck, neck_name = parent.get('neck'), f'{name}.neck'
    if isinstance(neck, list | tuple):
        neck, neck_name = neck[0], f'{neck_name}.0'
    if neck:
        yield from _neck_links(neck_name, neck, channels)
        if type_name(neck) == 'SSDNeck':
            # Its first outputs are its inputs.
            outputs = [*channels, *neck['out_channels'][len(neck['in_channels']) :]]
            yield Link(f'{neck_name}.out_channels', neck, 'out_channels', outputs)
            if 'bbox_head' in parent:
                yield Link(f'{name}.bbox_head.in_channels', parent['bbox_head'], 'in_channels', outputs)
        head, width = parent.get('decode_head'), neck.get('out_channels')
        index = head.get('in_index') if isinstance(head, dict) else None
        if isinstance(width, int) and isinstance(index, list | tuple):
            outputs = [width for _ in index]
            yield Link(f'{name}.decode_head.in_channels', head, 'in_channels', outputs)
        return
    for key in ('decode_head', 'auxiliary_head', 'bbox_head', 'panoptic_head', 'rpn_head'):
        heads = parent.get(key) or []
        single = isinstance(heads, dict)
        for i, head in enumerate([heads] if single else heads):
            yield from _head_links(f'{name}.{key}' if single else f'{name}.{key}.{i}', head, channels)


def _neck_links(name: str, neck: dict[str, Any], channels: list[int]) -> Iterator[Link]:
    given = neck.get('in_channels')
    if given is None:
        return
    if isinstance(given, int):
        right: int | list[int] = channels[-1]
    elif type_name(neck) == 'YOLOV3Neck':
        right = channels[::-1]
    elif type_name(neck) == 'JPU':
        # It alone has as many channel numbers as it takes maps, beginning with start_level.
        right = channels[neck.get('start_level', 0) :][: len(given)]
    else:
        right = channels
    yield Link(f'{name}.in_channels', neck, 'in_channels', right)


def _head_links(name: str, head: dict[str, Any], channels: list[int]) -> Iterator[Link]:
    given = head.get('in_channels')
    several = isinstance(given, list | tuple)
    index = head.get('in_index', range(len(channels)) if several else -1)
    try:
        right = [channels[i] for i in index] if several else channels[index]
    except IndexError as error:
        raise UserError(
            f'{name}.in_index={index}, but the backbone gives {len(channels)} maps: '
            f'in_index goes from 0 to {len(channels) - 1}, or change out_indices of the backbone.'
        ) from error
    if given is not None:
        yield Link(f'{name}.in_channels', head, 'in_channels', right)
    if head.get('c1_in_channels'):
        # DeepLabv3+ joins the first map in its decoder.
        yield Link(f'{name}.c1_in_channels', head, 'c1_in_channels', channels[0])
