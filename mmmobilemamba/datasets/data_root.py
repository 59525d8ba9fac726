"""Points a config at another data set of the same layout."""

import colorsys
import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from ..errors import UserError
from .ade_layout import MAP_SUFFIX, AdeSplit, read_ade_split, read_classes
from .coco_layout import CocoSplit, read_coco_split
from .layout import shorten

GOLDEN_RATIO = 0.618
PLACE = ('data_root', 'ann_file', 'data_prefix')
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def with_data(cfg: Config, data_root: str | Path | None) -> Config:
    """A config whose data are there: its own data set, or the one in ``data_root``.

    Raises:
        UserError: As :func:`check_data_exists` and :func:`retarget`.
    """
    if data_root is not None:
        return retarget(cfg, data_root)
    check_data_exists(cfg)
    return cfg


def retarget(cfg: Config, data_root: str | Path) -> Config:
    """Point a config at another data set of the same layout, and check that data set.

    Detection configs take the COCO layout, and their classes come from its annotation file.
    Segmentation configs take the ADE layout with a ``classes.txt``. The classes are written to
    every data set, and their number to every head.

    Args:
        cfg: A config of mmdet or mmseg; it is not changed. Without a ``train_dataloader``, the
            training split is neither read nor needed; with one, but no ``val_dataloader``, the
            validation split is not.
        data_root: Folder of the data set.

    Returns:
        The changed config.

    Raises:
        UserError: If the data set lacks files, or holds annotations that would go wrong unnoticed.
    """
    cfg = copy.deepcopy(cfg)
    _check_none_are_joined(cfg)
    root = Path(data_root)
    scope = cfg.get('default_scope')
    if scope == 'mmdet':
        num_classes = _retarget_coco(cfg, root)
    elif scope == 'mmseg':
        num_classes = _retarget_ade(cfg, root)
    else:
        raise UserError(f'--data-root works with configs of mmdet and mmseg, but default_scope={scope!r}.')
    if not set_num_classes(cfg.model, num_classes):
        raise UserError('No head of the model has num_classes, so --data-root cannot set it.')
    if 'data_root' in cfg:
        cfg.data_root = str(root)
    return cfg


def check_data_exists(cfg: Config) -> None:
    """Check that the files and folders of a config's own data set are there, as far as its run reads them.

    Raises:
        UserError: If one is missing.
    """
    read = ('train_dataloader', 'val_dataloader') if cfg.get('train_dataloader') else ('test_dataloader',)
    for loader, dataset in _datasets(cfg, read):
        places = [dataset.get('ann_file'), *(dataset.get('data_prefix') or {}).values()]
        for place in filter(None, places):
            path = os.path.join(dataset.get('data_root') or '', place)
            # A storage of its own has its own idea of where things lie.
            elsewhere = dataset.get('backend_args') or '://' in path
            if not elsewhere and not os.path.exists(path):
                raise UserError(
                    f'{path} does not exist; the {loader} of the config reads it. Put the data '
                    'set there, or give the folder of another one of the same layout with '
                    '--data-root.'
                )


def make_palette(num_colours: int) -> list[tuple[int, int, int]]:
    """RGB colours, 0 to 255, that differ from their neighbours as much as possible."""
    palette = []
    for i in range(num_colours):
        hue, value = i * GOLDEN_RATIO % 1, 1 - 0.15 * (i % 4)
        palette.append(tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.8, value)))
    return palette


def _check_none_are_joined(cfg: Config) -> None:
    for loader in LOADERS:
        places = {
            '/'.join(str(dataset[key]) for key in PLACE if dataset.get(key))
            for _, dataset in _datasets(cfg, [loader])
        }
        if len(places) > 1:
            raise UserError(
                f'The {loader} of the config joins {len(places)} data sets ({shorten(sorted(places))}), and '
                '--data-root would make them one and the same. Set their paths in the config and leave '
                '--data-root out.'
            )


def _retarget_coco(cfg: Config, root: Path) -> int:
    splits = {}
    for loader, dataset in _datasets(cfg):
        _check_is_coco(loader, dataset)
        split = 'train' if loader == 'train_dataloader' else 'val'
        if split == 'val' and _validation_is_skipped(cfg):
            splits[split] = replace(CocoSplit.named(split), classes=splits['train'].classes)
        elif split not in splits:
            with_masks = any(t.get('with_mask') for t in dataset.get('pipeline', []))
            filter_cfg = dataset.get('filter_cfg') if split == 'train' else None
            splits[split] = read_coco_split(root, split, with_masks, filter_cfg)
        _set_coco_dataset(dataset, root, splits[split])
    _check_same_classes(splits)
    for name in ('val_evaluator', 'test_evaluator'):
        evaluators = cfg.get(name) or []
        for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
            if evaluator.get('ann_file') is not None:
                evaluator.ann_file = str(root / splits['val'].ann_file)
    classes = next(iter(splits.values())).classes
    _log(root, classes, {name: split.num_images for name, split in splits.items()})
    return len(classes)


def _check_is_coco(loader: str, dataset: dict[str, Any]) -> None:
    # Segmentation alone does without MMDetection.
    from mmdet.datasets import CocoDataset, CocoPanopticDataset
    from mmdet.registry import DATASETS

    kind = dataset.type if isinstance(dataset.type, type) else DATASETS.get(dataset.type)
    if kind is None or not issubclass(kind, CocoDataset) or issubclass(kind, CocoPanopticDataset):
        raise UserError(
            f'The {loader} of the config has a data set of type={dataset.type!r}; --data-root works with '
            'CocoDataset and those derived from it, panoptic ones excepted. Take a config of COCO as the '
            'base, or set the paths of this data set in the config and leave --data-root out.'
        )


def _set_coco_dataset(dataset: dict[str, Any], root: Path, split: CocoSplit) -> None:
    dataset.data_root = str(root)
    dataset.ann_file = split.ann_file
    dataset.data_prefix = dict(img=split.image_folder)
    dataset.metainfo = dict(classes=split.classes, palette=make_palette(len(split.classes)))


def _check_same_classes(splits: dict[str, CocoSplit]) -> None:
    # The labels are positions in the list, so its order matters as much as its names.
    if len(splits) < 2 or splits['train'].classes == splits['val'].classes:
        return
    train, val = splits['train'].classes, splits['val'].classes
    only_train, only_val = set(train) - set(val), set(val) - set(train)
    if only_train or only_val:
        detail = '; '.join(
            f'only in {name}: {shorten(sorted(only))}'
            for name, only in (('train', only_train), ('val', only_val))
            if only
        )
    else:
        i = next(i for i, pair in enumerate(zip(train, val, strict=True)) if len(set(pair)) > 1)
        detail = f'the order differs from position {i}: {train[i]!r} in train, {val[i]!r} in val'
    raise UserError(
        'The "categories" of the training and the validation annotations differ '
        f'({detail}). Write the same list, in the same order, into '
        f'{splits["train"].ann_file} and {splits["val"].ann_file}.'
    )


def _retarget_ade(cfg: Config, root: Path) -> int:
    classes = read_classes(root)
    splits = {}
    for loader, dataset in _datasets(cfg):
        split = 'training' if loader == 'train_dataloader' else 'validation'
        if split == 'validation' and _validation_is_skipped(cfg):
            splits[split] = AdeSplit.unseen(root, split, splits['training'].image_suffix)
        elif split not in splits:
            splits[split] = read_ade_split(root, split, len(classes))
        # ADE20KDataset refuses classes other than its own.
        dataset.type = 'BaseSegDataset'
        dataset.reduce_zero_label = True
        dataset.img_suffix = splits[split].image_suffix
        dataset.seg_map_suffix = MAP_SUFFIX
        dataset.data_root = str(root)
        dataset.ann_file = ''
        dataset.data_prefix = dict(img_path=splits[split].image_folder, seg_map_path=splits[split].map_folder)
        dataset.metainfo = dict(classes=classes, palette=make_palette(len(classes)))
    _log(root, classes, {name: split.num_images for name, split in splits.items()})
    return len(classes)


def _validation_is_skipped(cfg: Config) -> bool:
    """Whether a run trains without validation: only a later test will read the validation split."""
    return bool(cfg.get('train_dataloader')) and not cfg.get('val_dataloader')


def _datasets(cfg: Config, loaders: Sequence[str] = LOADERS) -> Iterator[tuple[str, dict[str, Any]]]:
    """The innermost data sets of a config, each with the name of its data loader."""
    for name in loaders:
        if cfg.get(name):
            pending = [cfg[name].dataset]
            while pending:
                dataset = pending.pop()
                wrapped = dataset.get('datasets') or dataset.get('dataset')
                if wrapped:
                    pending += wrapped if isinstance(wrapped, list) else [wrapped]
                else:
                    yield name, dataset


def set_num_classes(node: Any, num_classes: int, before: int | None = None) -> int:
    """Set the number of classes everywhere below ``node``, and the weights of the classes in losses.

    Args:
        node: A part of a config.
        num_classes: The number.
        before: What it was above ``node``.

    Returns:
        How often the number was set.

    Raises:
        UserError: If a loss weighs the classes that were before differently.
    """
    if isinstance(node, list | tuple):
        return sum(set_num_classes(item, num_classes, before) for item in node)
    if not isinstance(node, dict):
        return 0
    count = 0
    # Mask2Former has the second name, beside that of panoptic segmentation's other classes.
    for key in ('num_classes', 'num_things_classes'):
        if key in node and not node.get('num_stuff_classes'):
            before, node[key] = node[key], num_classes
            count += 1
    if before is not None and isinstance(node.get('class_weight'), list | tuple):
        _fit_class_weights(node, num_classes, before)
    for key, value in node.items():
        if key not in ('backbone', 'neck', 'data_preprocessor'):
            count += set_num_classes(value, num_classes, before)
    return count


def _fit_class_weights(loss: dict[str, Any], num_classes: int, before: int) -> None:
    classes, no_object = list(loss['class_weight'][:before]), list(loss['class_weight'][before:])
    if before == num_classes or len(classes) < before or len(no_object) > 1:
        return
    if len(set(classes)) > 1:
        raise UserError(
            f'The class_weight of a {loss.get("type")} in the config is for {before} classes, but the data '
            f'have {num_classes}. Set it in the config to as many numbers.'
        )
    loss['class_weight'] = classes[:1] * num_classes + no_object


def _log(root: Path, classes: tuple[str, ...], num_images: dict[str, int]) -> None:
    images = ', '.join(f'{count} {name} images' for name, count in num_images.items() if count is not None)
    print_log(
        f'Data root {root}: {images}, {len(classes)} classes ({shorten(classes)})',
        logger='current',
    )
