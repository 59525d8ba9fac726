"""Whole models for prediction: a config and a checkpoint, ready on a device."""

from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn

from ..checkpoint import check_class_order, extract_state_dict, read_checkpoint, trained_meta
from ..datasets.data_root import make_palette, set_num_classes
from ..datasets.layout import shorten
from ..deploy import switch_to_deploy
from ..engine.config_nodes import innermost_test_dataset
from ..engine.strict_load_hook import fit_state_dict
from ..errors import UserError


def check_device(device: str | None) -> torch.device:
    """The device of that name; the first GPU, else the CPU, if None.

    Raises:
        UserError: If it is not there.
    """
    chosen = device or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        found = torch.device(chosen)
        torch.empty(1, device=found)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f'--device {chosen} cannot be used ({reason}). Take cpu, or cuda:0 with a GPU.'
        ) from error
    return found


def device_name(device: torch.device) -> str:
    """The GPU's own name, or 'CPU' with the number of threads."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    if device.type == 'cpu':
        return f'CPU, {torch.get_num_threads()} threads'
    return str(device)


def load_model(
    cfg: Config,
    checkpoint: str,
    device: torch.device | str = 'cpu',
    deploy: bool = False,
    classes_from_data: bool = False,
) -> nn.Module:
    """Build the detector or segmentor of a config and fill it from a checkpoint, all of it.

    Args:
        cfg: The config; the heads are given the number of classes that the checkpoint names.
        checkpoint: File or address of the weights.
        device: Where to put the model.
        deploy: Fold the backbone for deployment.
        classes_from_data: Take the classes of the config's data set, not those of the checkpoint.

    Returns:
        The model in evaluation mode, with ``cfg`` and ``dataset_meta`` (classes, palette).

    Raises:
        CheckpointError: If the checkpoint cannot be read or does not fit, in its tensors or the order of
            its classes.
        UserError: If neither the checkpoint nor the config names the classes.
    """
    scope = cfg.get('default_scope')
    if scope not in ('mmdet', 'mmseg'):
        raise UserError(
            f'Configs of mmdet and mmseg can predict, but this one has default_scope={scope!r}. If its model '
            'is of one of them, say so: --cfg-options default_scope=mmdet (or mmseg).'
        )
    init_default_scope(scope)
    content = read_checkpoint(checkpoint)
    meta, source = _with_palette(trained_meta(content)), 'checkpoint'
    if classes_from_data or not meta:
        meta, source = _config_meta(cfg), 'config and its data set'
    else:
        set_num_classes(cfg.model, len(meta['classes']))
    print_log(
        f'{len(meta["classes"])} classes, from the {source}: {shorten(meta["classes"])}', logger='current'
    )
    if cfg.model.get('backbone'):
        # The checkpoint holds the backbone; its pretrained weights are not needed.
        cfg.model.backbone.init_cfg = None
    model = revert_sync_batchnorm(MODELS.build(cfg.model))
    model.load_state_dict(fit_state_dict(model, extract_state_dict(content)))
    check_class_order(content, meta['classes'])
    if deploy:
        switch_to_deploy(model)
    model.cfg, model.dataset_meta = cfg, meta
    return model.to(device).eval()


def _config_meta(cfg: Config) -> dict[str, Any]:
    # Built, for the data sets of mmseg decide there whether 0 is a class; with lazy_init they read no file.
    dataset = DATASETS.build({**innermost_test_dataset(cfg), 'lazy_init': True, 'test_mode': False})
    meta = _with_palette(dataset.metainfo)
    if not meta:
        raise UserError(
            'Neither the checkpoint nor the config names the classes. Give the data set that the '
            'checkpoint was trained on with --data-root.'
        )
    return meta


def _with_palette(meta: dict[str, Any]) -> dict[str, Any]:
    """The same with a colour for each class; empty without classes."""
    if not meta.get('classes'):
        return {}
    palette = meta.get('palette')
    if not palette or len(palette) != len(meta['classes']):
        meta = {**meta, 'palette': make_palette(len(meta['classes']))}
    return meta
