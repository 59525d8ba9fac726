"""Backbones as a command line names them."""

import ast
import importlib
from pathlib import Path
from typing import Any

from mmengine.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..arch import ARCHS
from ..backbones import MobileMamba
from ..checkpoint import load_pretrained
from ..engine import load_config
from ..errors import UserError
from .load import load_model

FORMS = (
    'a variant of MobileMamba (b1), one with weights (b1,weights.pth), a config with or without a checkpoint '
    "(config.py,checkpoint.pth), or a registered backbone with its arguments ('mmdet.ResNet(depth=50)')"
)


def build_backbone(spec: str) -> nn.Module:
    """Build the backbone that a text describes.

    Where the text names no weights they are random, and the batch norms of a MobileMamba that begin at zero,
    so that a residual branch begins as nothing, are set to one: else it would compute as if it had no token
    mixers.

    Args:
        spec: 'b1', 'b1,weights.pth', 'config.py', 'config.py,checkpoint.pth' or
            'mmdet.ResNet(depth=50)'.

    Raises:
        UserError: If it is none of these, or cannot be built.
        CheckpointError: If the weights cannot be read or do not fit.
    """
    if '(' in spec:
        return _registered(spec)
    name, _, weights = spec.partition(',')
    if name in ARCHS:
        backbone = MobileMamba(name)
        if not weights:
            return _with_open_branches(backbone)
        load_pretrained(backbone, weights)
        return backbone
    if Path(name).suffix == '.py':
        cfg = load_config(name)
        if weights:
            return load_model(cfg, weights).backbone
        _register(cfg.get('default_scope'))
        backbone = _build(spec, {**cfg.model.backbone, 'init_cfg': None}, cfg.get('default_scope'))
        return _with_open_branches(backbone)
    raise UserError(f'The model {spec!r} is none of: {FORMS}.')


def short_name(spec: str) -> str:
    """A text for :func:`build_backbone` without folders and suffixes, for tables and pictures."""
    return spec if '(' in spec else ', '.join(Path(part).stem for part in spec.split(','))


def _with_open_branches(backbone: nn.Module) -> nn.Module:
    for module in backbone.modules():
        if isinstance(module, _BatchNorm) and not module.weight.any():
            nn.init.ones_(module.weight)
    return backbone


def _registered(spec: str) -> nn.Module:
    try:
        call = ast.parse(spec, mode='eval').body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError('arguments need their names')
        options = {keyword.arg: _literal(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise UserError(f'The model {spec!r} cannot be read ({error}). It must be {FORMS}.') from error
    name = ast.unparse(call.func)
    scope = name.partition('.')[0] if '.' in name else None
    _register(scope)
    backbone = _build(spec, {**options, 'type': name}, scope)
    if options.get('init_cfg'):
        # Not otherwise: it would let branches of some networks, as of ResNet, begin as nothing.
        backbone.init_weights()
    return backbone


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and ast.unparse(node.func) == 'dict' and not node.args:
        return {keyword.arg: _literal(keyword.value) for keyword in node.keywords}
    return ast.literal_eval(node)


def _register(scope: str | None) -> None:
    if scope is None:
        return
    if scope not in ('mmdet', 'mmseg', 'mmpretrain'):
        raise UserError(f'{scope!r} is no registry with backbones; choose mmdet, mmseg or mmpretrain.')
    try:
        importlib.import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)
    except ImportError as error:
        raise UserError(f'{scope} cannot be imported ({error}); install it.') from error


def _build(spec: str, options: dict[str, Any], scope: str | None) -> nn.Module:
    try:
        with MODELS.switch_scope_and_registry(scope) as registry:
            return registry.build(options)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise UserError(f'The model {spec!r} cannot be built: {error}') from error
