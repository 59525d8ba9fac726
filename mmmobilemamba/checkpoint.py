"""Checkpoints: the authors' layout and ours, loaded whole or refused, and never executed.

The authors' key names live in this module only.
"""

import logging
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from mmengine.logging import print_log
from torch import Tensor

from .arch import ARCHS, NUM_STAGES
from .errors import UserError
from .layers import wavelet_filters
from .safe_load import safe_load

StateDict = dict[str, Tensor]

# What training checkpoints keep their weights under, best first: the authors report the results of
# the averaged copy, `net_E`.
CONTAINERS = ('net_E', 'net', 'state_dict', 'model')
_CLASSIFIER = ('head.', 'head_dist.')
_AUTHORS_KEY = re.compile(r'(patch_embed|blocks\d)\.')
_FILTER_KEY = re.compile(r'(.*global_op\.)i?wt_filter$')
_SUBBAND_KEY = re.compile(r'wavelet\.(convs|scales)\.')

# Our key → the authors', by substitutions in this order.
_TO_AUTHORS = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r'^stem\.(\d)\.conv', r'patch_embed.\1.c'),
        (r'^stem\.', 'patch_embed.'),
        (r'^stage(\d)\.downsample\.dw_in', r'blocks\1.0.0.m'),
        (r'^stage(\d)\.downsample\.ffn_in', r'blocks\1.0.1.m'),
        (r'^stage(\d)\.downsample\.merge\.expand', r'blocks\1.1.conv1'),
        (r'^stage(\d)\.downsample\.merge\.dw', r'blocks\1.1.conv2'),
        (r'^stage(\d)\.downsample\.merge\.project', r'blocks\1.1.conv3'),
        (r'^stage(\d)\.downsample\.merge\.se', r'blocks\1.1.se'),
        (r'^stage(\d)\.downsample\.dw_out', r'blocks\1.2.0.m'),
        (r'^stage(\d)\.downsample\.ffn_out', r'blocks\1.2.1.m'),
        (r'^stage(\d)\.blocks', r'blocks\1'),
        (r'\.dw_in\.', '.dw0.m.'),
        (r'\.dw_out\.', '.dw1.m.'),
        (r'\.ffn_in\.', '.ffn0.m.'),
        (r'\.ffn_out\.', '.ffn1.m.'),
        (r'\.expand\.', '.pw1.'),
        (r'\.reduce\.', '.pw2.'),
        (r'\.mixer\.proj\.', '.mixer.m.attn.proj.1.'),
        (r'\.mixer\.local_branch\.', '.mixer.m.attn.local_op.'),
        (r'\.mixer\.global_branch\.', '.mixer.m.attn.global_op.'),
        (r'\.dwconv\.', '.dwconv3x3.'),
        (r'\.pointwise\.', '.dwconv1x1.'),
        (r'\.ss2d\.conv\.', '.global_atten.conv2d.'),
        (r'\.ss2d\.', '.global_atten.'),
        (r'\.wavelet\.convs\.', '.wavelet_convs.'),
        (r'\.wavelet\.scales\.(\d+)$', r'.wavelet_scale.\1.weight'),
        (r'\.base_scale$', '.base_scale.weight'),
        (r'\.A_log$', '.A_logs'),
        (r'\.D$', '.Ds'),
        (r'\.dt_proj_', '.dt_projs_'),
        (r'\.conv\.', '.c.'),
    )
)


class CheckpointError(UserError):
    """A checkpoint that cannot be read, or does not fit the model."""


def authors_key(key: str) -> str:
    """The authors' name of one of the backbone's tensors (their layout of a classification file)."""
    for pattern, new in _TO_AUTHORS:
        key = pattern.sub(new, key)
    # Their later stages count the three modules of the down-sampling as blocks 0, 1 and 2.
    block = re.match(r'blocks([23])\.(\d+)\.(?=dw|ffn|mixer)', key)
    if block:
        key = f'blocks{block[1]}.{int(block[2]) + 3}.{key[block.end() :]}'
    return key


def _swap_subbands(key: str, tensor: Tensor, to_authors: bool) -> Tensor:
    """Sub-band by sub-band (ours) ↔ channel by channel (theirs), where the tensor has sub-bands."""
    if not _SUBBAND_KEY.search(key):
        return tensor
    dim = 1 if '.scales.' in key else 0
    channels = tensor.shape[dim] // 4
    grouped = tensor.unflatten(dim, (4, channels) if to_authors else (channels, 4))
    return grouped.transpose(dim, dim + 1).flatten(dim, dim + 1).contiguous()


def is_authors_layout(keys: Iterable[str]) -> bool:
    """Whether any of a backbone's keys is named as in the authors' files."""
    return any(_AUTHORS_KEY.match(key) for key in keys)


def to_authors_layout(state_dict: StateDict, wavelet: str = 'haar') -> StateDict:
    """A backbone's state dict in the authors' layout, with the constant wavelet filters it carries."""
    converted = {}
    for key, tensor in state_dict.items():
        name = authors_key(key)
        converted[name] = _swap_subbands(key, tensor, to_authors=True)
        match = re.match(r'(.*global_op\.)wavelet_convs\.0\.weight$', name)
        if match:
            for kind, filters in zip(('wt', 'iwt'), wavelet_filters(wavelet), strict=True):
                constant = filters.repeat(tensor.shape[0] // 4, 1, 1)[:, None]
                converted[f'{match[1]}{kind}_filter'] = constant.to(tensor.dtype)
    return converted


def from_authors_layout(
    state_dict: StateDict, native_keys: Iterable[str], wavelet: str = 'haar'
) -> tuple[StateDict, list[str]]:
    """A backbone's state dict in our layout.

    Args:
        state_dict: tensors named as the authors name them.
        native_keys: the keys of the backbone that is to be filled; stages it lacks are left out.
        wavelet: the wavelet of that backbone; the file's filters must be the same.

    Returns:
        The converted tensors (those that match nothing keep their name), and the keys knowingly left
        out: classification head, stages that are not built, constant filters.

    Raises:
        CheckpointError: when the file was made with another wavelet.
    """
    native = {authors_key(key): key for key in native_keys}
    built = {match[1] for match in map(_AUTHORS_KEY.match, native) if match}
    converted, dropped = {}, []
    for name, tensor in state_dict.items():
        stage = _AUTHORS_KEY.match(name)
        if name in native:
            converted[native[name]] = _swap_subbands(native[name], tensor, to_authors=False)
        elif name.startswith(_CLASSIFIER) or (
            stage and stage[1] not in built and stage[1] in (f'blocks{i + 1}' for i in range(NUM_STAGES))
        ):
            dropped.append(name)
        elif _FILTER_KEY.match(name):
            constant = wavelet_filters(wavelet)[name.endswith('iwt_filter')]
            if tensor.shape[2:] != constant.shape[1:] or not torch.allclose(
                tensor[:4, 0].float(), constant, atol=1e-3
            ):
                raise CheckpointError(
                    f"{name} of the checkpoint is not the filter of the model's "
                    f'wavelet {wavelet!r}; build the model with that wavelet'
                )
            dropped.append(name)
        else:
            converted[name] = tensor
    return converted, dropped


def guess_arch(state_dict: StateDict) -> str | None:
    """Name(s) of the published variant whose widths and depths a backbone's state dict has."""
    tensors = (
        state_dict
        if is_authors_layout(state_dict)
        else {authors_key(key): value for key, value in state_dict.items()}
    )
    widths, depths = [], []
    for stage in range(1, NUM_STAGES + 1):
        blocks = {int(m[1]) for m in (re.match(rf'blocks{stage}\.(\d+)\.ffn1\.', k) for k in tensors) if m}
        sample = tensors.get(f'blocks{stage}.{min(blocks, default=0)}.ffn1.m.pw2.c.weight')
        if sample is None:
            return None
        widths.append(sample.shape[0])
        depths.append(len(blocks))
    names = [
        name for name, arch in ARCHS.items() if arch.widths == tuple(widths) and arch.depths == tuple(depths)
    ]
    return '/'.join(names) or None


def describe_misfit(expected: StateDict, given: StateDict, shown: int = 8) -> str:
    """What keeps ``given`` from filling ``expected`` exactly, key by key; empty where nothing does."""

    def listed(kind: str, keys: list[str]) -> str:
        more = f', … {len(keys) - shown} more' if len(keys) > shown else ''
        return f'{len(keys)} {kind}: {", ".join(keys[:shown])}{more}'

    problems = {
        'keys of the model are not in the checkpoint': [k for k in expected if k not in given],
        'keys of the checkpoint are not in the model': [k for k in given if k not in expected],
        'tensors have another shape': [
            f'{k} ({tuple(given[k].shape)} in the checkpoint, {tuple(v.shape)} in the model)'
            for k, v in expected.items()
            if k in given and given[k].shape != v.shape
        ],
    }
    return '\n'.join(listed(kind, keys) for kind, keys in problems.items() if keys)


def prepare_backbone_state_dict(
    model: nn.Module, state_dict: StateDict, prefix: str = '', reinit: tuple[str, ...] = ()
) -> None:
    """Bring the backbone's part of a state dict into our layout, in place, or refuse it.

    Called by :class:`MobileMamba` whenever PyTorch or mmengine loads a state dict, so that no way of
    loading leaves tensors at random values unnoticed.

    Args:
        model: the :class:`MobileMamba` to be filled.
        state_dict: tensors of the backbone, or of a model that holds it under ``prefix``.
        prefix: where the backbone's keys begin, e.g. ``'backbone.'``.
        reinit: beginnings of names, prefix included, of tensors that are neither needed nor taken.

    Raises:
        CheckpointError: when a key of the backbone would stay unfilled or one of the file unused.
    """
    own = {k[len(prefix) :]: v for k, v in state_dict.items() if k.startswith(prefix)}
    expected = model.state_dict()
    _check_same_folding(model, own)
    if is_authors_layout(own):
        given, dropped = from_authors_layout(own, expected, model.arch.wavelet)
    else:
        given = {k: v for k, v in own.items() if k in expected or not _is_unbuilt(k, model)}
        dropped = [k for k in own if k not in given]
    expected, given = (
        {k: v for k, v in tensors.items() if not (prefix + k).startswith(reinit)}
        for tensors in (expected, given)
    )
    misfit = describe_misfit(expected, given)
    if misfit:
        raise CheckpointError(
            f'the checkpoint does not fit MobileMamba:\n{misfit}{_advice(model, own, prefix)}'
        )
    if dropped:
        groups = sorted(
            {k.split('.')[0] if not _FILTER_KEY.match(k) else 'wavelet filters (constant)' for k in dropped}
        )
        print_log(
            f'MobileMamba: {len(given)} tensors loaded; {len(dropped)} of the checkpoint not '
            f'needed by this model: {", ".join(groups)}',
            logger='current',
        )
    for key in own:
        del state_dict[prefix + key]
    state_dict.update({prefix + key: tensor for key, tensor in given.items()})


def _check_same_folding(model: nn.Module, own: StateDict) -> None:
    """Refuse a trained checkpoint for a folded model, and the reverse."""
    if not any(key.startswith('stem.') or _AUTHORS_KEY.match(key) for key in own):
        return  # Of something else, as will be said.
    folded = not any(key.endswith('.running_mean') for key in own)
    if model.deployed and not folded:
        raise CheckpointError(
            'this MobileMamba was fused by switch_to_deploy(), but the checkpoint is of one that was not: '
            'load the checkpoint first, then call switch_to_deploy()'
        )
    if folded and not model.deployed:
        raise CheckpointError(
            'the checkpoint is of a MobileMamba fused by switch_to_deploy(), which cannot be undone: call '
            'switch_to_deploy() on this model before loading it, or take the checkpoint of the training'
        )


def _is_unbuilt(key: str, model: nn.Module) -> bool:
    stage = re.match(r'stage(\d)\.', key)
    return bool(stage) and model.num_stages < int(stage[1]) <= NUM_STAGES


def _advice(model: nn.Module, own: StateDict, prefix: str) -> str:
    if not own:
        return (
            f'\nNo key begins with {prefix!r}. If the checkpoint is a bare backbone (a classification '
            'checkpoint), give it to the backbone, not to the whole model: '
            'backbone.init_cfg=dict(type="Pretrained", checkpoint=…)'
        )
    if not prefix and any(key.startswith('backbone.') for key in own):
        return (
            '\nIt is a whole detector or segmentor: add prefix="backbone." to init_cfg to take its backbone'
        )
    found, wanted = guess_arch(own), guess_arch(model.state_dict())
    if found and found != wanted:
        return (
            f'\nIts shapes are those of arch {found!r}, the model is '
            f'{wanted or model.arch!r}: change arch or take the other checkpoint'
        )
    return ''


def read_checkpoint(filename: str) -> dict[str, Any]:
    """Read a checkpoint from a path or an address mmengine knows, running none of its content.

    Raises:
        CheckpointError: when the file is missing, cut short, no checkpoint, or holds code.
    """
    try:
        if '://' not in filename and not Path(filename).is_file():
            raise CheckpointError(
                f'checkpoint {filename!r} does not exist; give the path of a file, '
                'or an address that mmengine can open (https://…)'
            )
        content = safe_load(filename)
    except pickle.UnpicklingError as err:
        raise CheckpointError(
            f'checkpoint {filename!r} is not a PyTorch checkpoint, or holds objects other than '
            f'tensors and plain values, which are refused because loading them could run code: {err}'
        ) from err
    except CheckpointError:
        raise
    except Exception as err:  # whatever an unpickler stumbles over in a file that is none of its own
        raise CheckpointError(
            f'checkpoint {filename!r} cannot be read; it may be cut short or no '
            f'checkpoint at all, download it again: {err!r}'
        ) from err
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f'checkpoint {filename!r} holds a {type(content).__name__}; expected is '
            f'a state dict, or one under {", ".join(CONTAINERS)}'
        )
    return dict(content)


def extract_state_dict(checkpoint: Mapping[str, Any]) -> StateDict:
    """The tensors of a checkpoint: bare or in one of :data:`CONTAINERS`, without ``module.``."""
    for name in CONTAINERS:
        if isinstance(checkpoint.get(name), Mapping):
            checkpoint = checkpoint[name]
            break
    strays = [key for key, value in checkpoint.items() if not isinstance(value, Tensor)]
    if strays or not checkpoint:
        raise CheckpointError(
            'no state dict found: the checkpoint holds '
            f'{", ".join(map(str, strays[:8])) or "nothing"}; expected are tensors, '
            f'bare or under one of {", ".join(CONTAINERS)}'
        )
    return {key.removeprefix('module.'): value for key, value in checkpoint.items()}


def trained_meta(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of the data set it was trained on (classes, palette, …), if it does."""
    meta = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
    return {key.lower(): value for key, value in meta.items()}


def check_class_order(checkpoint: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Refuse to give the outputs of a trained head the names of other ones among its classes.

    Args:
        checkpoint: a checkpoint; without names of classes it is accepted.
        classes: those of the data that the model is to be used with.

    Raises:
        CheckpointError: when both have a class at different places.
    """
    trained = trained_meta(checkpoint).get('classes') or ()
    other = [(i, a, b) for i, (a, b) in enumerate(zip(trained, classes, strict=False)) if a != b]
    for i, name, here in other:
        if name in classes:
            raise CheckpointError(
                f'Class {i} of the checkpoint is {name!r}, class {i} of the data is {here!r}, and {name!r} '
                f'is class {list(classes).index(name)} there: predictions would be given wrong names. Bring '
                'the classes of the data (the categories of a COCO file, the lines of classes.txt) into the '
                f'order of the checkpoint: {", ".join(trained)}. To train on from these weights, --reinit '
                'the layers that tell classes apart.'
            )
    if other:
        pairs = ', '.join(f'{name!r} is now {here!r}' for _, name, here in other[:8])
        print_log(
            f'{len(other)} classes have other names in the data than in the checkpoint: {pairs}'
            f'{", …" if len(other) > 8 else ""}. Take care that they are the same things.',
            logger='current',
            level=logging.WARNING,
        )


def load_pretrained(model: nn.Module, filename: str, prefix: str = '') -> None:
    """Fill a backbone from a checkpoint file, all of it or not at all.

    Args:
        model: the :class:`MobileMamba` to fill.
        filename: a checkpoint of ours or of the authors, see :func:`read_checkpoint`.
        prefix: take only the keys that begin so, e.g. ``'backbone.'`` of a detector.

    Raises:
        CheckpointError: as :func:`prepare_backbone_state_dict` and :func:`read_checkpoint`.
    """
    content = read_checkpoint(filename)
    dot = prefix and prefix.rstrip('.') + '.'
    try:
        tensors = {k[len(dot) :]: v for k, v in extract_state_dict(content).items() if k.startswith(dot)}
        model.load_state_dict(tensors)
    except CheckpointError as err:
        raise CheckpointError(f'{filename}: {err}') from err
    print_log(f'MobileMamba: loaded {filename}', logger='current')


def to_authors_checkpoint(checkpoint: Mapping[str, Any], wavelet: str | None = None) -> dict[str, Any]:
    """A checkpoint of ours as the authors would have written it.

    Args:
        checkpoint: of a bare backbone, or of a detector or segmentor (backbone under ``backbone.``).
        wavelet: the wavelet of the backbone; None takes that of the config in the checkpoint, haar if
            it names none.

    Returns:
        For a backbone a bare state dict, for a whole model ``{'state_dict': …}``; neck and heads keep
        their names, which are the authors' too.

    Raises:
        CheckpointError: when it holds no MobileMamba in our layout, or a folded one.
    """
    tensors = extract_state_dict(checkpoint)
    prefix = 'backbone.' if any(key.startswith('backbone.') for key in tensors) else ''
    own = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
    if is_authors_layout(own):
        raise CheckpointError("the checkpoint is in the authors' layout already")
    if not any(key.startswith('stem.') for key in own):
        raise CheckpointError(f'no MobileMamba found: the keys begin with {", ".join(list(own)[:3])}')
    if not any(key.endswith('running_mean') for key in own):
        raise CheckpointError(
            "the MobileMamba was folded by switch_to_deploy(), which the authors' layout "
            'has no keys for; convert the checkpoint it was folded from'
        )
    if wavelet is None:
        config = str(checkpoint.get('meta', {}).get('cfg', ''))
        found = re.search(r"""\bwavelet['"]?\s*[=:]\s*['"]([\w.]+)""", config)
        wavelet = found[1] if found else 'haar'
    converted = {prefix + k: v for k, v in to_authors_layout(own, wavelet).items()}
    if not prefix:
        return converted
    others = {k: v for k, v in tensors.items() if not k.startswith(prefix)}
    return {'state_dict': {**converted, **others}}
