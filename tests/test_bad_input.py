"""What users get wrong, and the message that each mistake gets.

Every case is a mistake, made in an empty folder, and the words that its one message must hold: what was
given, what is allowed, what to do. The folder must be as before: nothing lost, nothing
half made, no code run.
"""

import io
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from tiny import DET_CONFIG, REPOSITORY, TINY, make_ade, make_coco, write_config

from mmmobilemamba import MobileMamba, engine
from mmmobilemamba.checkpoint import load_pretrained
from mmmobilemamba.datasets import check_data_exists, retarget
from mmmobilemamba.engine.config import check_writable
from mmmobilemamba.errors import UserError
from mmmobilemamba.evaluation.images import read_image
from mmmobilemamba.necks import EfficientViTFPN

ARCH_FIELDS = 'widths, depths, drop_path_rate'
TRAIN, VAL = 'annotations/instances_train2017.json', 'annotations/instances_val2017.json'


@dataclass(frozen=True)
class Mistake:
    """One mistake.

    Attributes:
        name: What it is.
        make: Makes it in a folder; what it returns goes to ``call``.
        call: Meets it.
        words: What the message must hold.
    """

    name: str
    make: Callable[[Path], Any]
    call: Callable[[Any], Any]
    words: tuple[str, ...]


def backbone(name: str, options: dict[str, Any], *words: str) -> Mistake:
    return Mistake(name, lambda folder: options, lambda given: MobileMamba(**{'arch': TINY, **given}), words)


def images(name: str, make: Callable[[], torch.Tensor], *words: str) -> Mistake:
    return Mistake(name, lambda folder: make(), lambda x: MobileMamba(TINY).eval()(x), words)


BACKBONE = [
    backbone('unknown arch', dict(arch='b7'), "arch='b7'", 't2, t4, s6, b1, b2, b4', ARCH_FIELDS),
    backbone('arch of another type', dict(arch=3), 'arch=3', 't2, t4, s6, b1, b2, b4', ARCH_FIELDS),
    backbone('field missing', dict(arch=dict(widths=[16, 24, 32])), "missing fields ['depths']", ARCH_FIELDS),
    backbone('field unknown', dict(arch=dict(TINY, width=3)), "unknown fields ['width']", ARCH_FIELDS),
    backbone(
        'two depths', dict(arch=dict(TINY, depths=[1, 1])), 'depths=(1, 1)', 'three integers of at least 1'
    ),
    backbone('depth as text', dict(arch=dict(TINY, depths='111')), "depths='111'", 'three integers'),
    backbone(
        'odd width', dict(arch=dict(TINY, widths=[20, 24, 32])), 'widths=(20,', 'the first a multiple of 8'
    ),
    backbone('even kernel', dict(arch=dict(TINY, kernel_sizes=[3, 4, 3])), '(3, 4, 3)', 'three odd integers'),
    backbone('no state', dict(arch=dict(TINY, d_state=0)), 'd_state=0', 'an integer above 0'),
    backbone('no width', dict(arch=dict(TINY, ssm_expansion=0.01)), 'ssm_expansion=0.01', 'at least 1/16'),
    backbone(
        'fraction', dict(arch=TINY, out_indices=(1.0, 2)), 'out_indices=(1.0, 2)', 'increasing integers'
    ),
    backbone(
        'ratios of 1.2', dict(arch=dict(TINY, global_ratios=[1.2, 1, 1])), '1.2', 'three numbers in [0, 1]'
    ),
    backbone('unknown wavelet', dict(arch=dict(TINY, wavelet='nope')), "wavelet='nope'", 'pywt.wavelist'),
    backbone('no output', dict(out_indices=()), 'out_indices=()', '0 (stem), 1, 2, 3', 'at least one'),
    backbone('output 4', dict(out_indices=(1, 4)), 'out_indices=(1, 4)', '0 (stem), 1, 2, 3'),
    backbone('outputs downwards', dict(out_indices=(2, 1)), 'out_indices=(2, 1)', 'increasing'),
    backbone('output twice', dict(out_indices=(1, 1)), 'out_indices=(1, 1)', 'increasing'),
    backbone('output as a number', dict(out_indices=3), 'out_indices=3', '0 (stem), 1, 2, 3'),
    backbone('frozen stage 4', dict(frozen_stages=4), 'frozen_stages=4', '-1 (none), 0 (stem)'),
    backbone('frozen stage as a fraction', dict(frozen_stages=1.0), 'frozen_stages=1.0', '-1 (none)'),
    backbone('layer norm', dict(norm_cfg=dict(type='LN')), "norm_cfg={'type': 'LN'}", "dict(type='BN') or"),
    backbone('unknown norm', dict(norm_cfg=dict(type='BM')), "norm_cfg={'type': 'BM'}", "dict(type='BN') or"),
    backbone('norm_eval in words', dict(norm_eval='no'), "norm_eval='no'", 'True or False'),
    backbone('with_cp in words', dict(with_cp='False'), "with_cp='False'", 'True or False'),
    backbone('frozen stages yes', dict(frozen_stages=True), 'frozen_stages=True', '-1 (none), 0 (stem)'),
    backbone('norm without weights', dict(norm_cfg=dict(type='BN', affine=False)), 'leave out affine'),
    backbone(
        'norm without statistics',
        dict(norm_cfg=dict(type='BN', track_running_stats=False)),
        'leave out track_running_stats',
    ),
    backbone('norm by name', dict(norm_cfg='SyncBN'), "norm_cfg='SyncBN'", "dict(type='BN') or"),
    backbone('frozen stage as text', dict(frozen_stages='1'), "frozen_stages='1'", '-1 (none), 0 (stem)'),
    backbone(
        'frozen stage not built', dict(frozen_stages=3, out_indices=(1, 2)), 'frozen_stages=3', 'lower it'
    ),
    backbone('no channel', dict(in_channels=0), 'in_channels=0', 'an integer of at least 1'),
    backbone('drop path of 1', dict(drop_path_rate=1.0), 'drop_path_rate=1.0', 'in [0, 1)'),
    backbone('drop path as text', dict(drop_path_rate='0.1'), "drop_path_rate='0.1'", 'in [0, 1)'),
    backbone('unknown scan', dict(scan_backend='cuda'), "'cuda'", "'torch', 'reference'", "'auto'"),
    images('grey images', lambda: torch.rand(1, 1, 32, 32), '(1, 1, 32, 32)', '(B, 3, H, W)', 'in_channels'),
    images('image without batch', lambda: torch.rand(3, 32, 32), '(3, 32, 32)', '(B, 3, H, W)'),
    images('image without pixels', lambda: torch.rand(1, 3, 0, 32), '(1, 3, 0, 32)', 'at least one pixel'),
    images(
        'bytes',
        lambda: torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        'torch.uint8',
        'floating-point',
        'normalise',
    ),
    Mistake(
        'neck for another variant',
        lambda folder: [torch.rand(1, c, 4, 4) for c in (4, 7)],
        lambda maps: EfficientViTFPN([4, 6], 8)(maps),
        ('in_channels=(4, 6)', 'maps of (4, 7) channels', 'Set in_channels=[4, 7]'),
    ),
]


def config(name: str, text: str | None, options: dict[str, Any], *words: str) -> Mistake:
    """A config read as the command lines do; ``text`` replaces that of a working one."""

    def make(folder: Path) -> str:
        return str(write_config(folder / 'config.py', DET_CONFIG if text is None else text))

    return Mistake(name, make, lambda path: engine.load_config(path, options), words)


CONFIGS = [
    config('no Python', 'x = (', {}, 'config.py', 'cannot be read', 'never closed'),
    config('base missing', "_base_ = './none.py'", {}, 'config.py', 'none.py'),
    config(
        'package missing',
        "custom_imports = dict(imports=['no_such_package'])",
        {},
        "No module named 'no_such_package'",
        'needs mmdet',
        'installation in the README',
    ),
    Mistake(
        'config missing',
        lambda folder: str(write_config(folder / 'config.py', '').with_name('confg.py')),
        engine.load_config,
        ('confg.py', 'does not exist', 'holds: config.py'),
    ),
    config(
        'setting of no such name',
        None,
        {'model.backbone.out_indexes': [1, 2]},
        'model.backbone',
        "'out_indexes'",
        'arch, in_channels, out_indices, frozen_stages',
    ),
    config(
        'setting of no such value',
        None,
        {'model.backbone.out_indices': [1, 5]},
        'model.backbone: out_indices=[1, 5]',
        '0 (stem), 1, 2, 3',
    ),
    config(
        'option for a list entry that is not there',
        None,
        {'train_dataloader.dataset.pipeline.99.x': 1},
        'train_dataloader.dataset.pipeline.99.x=1',
        'is a list, whose entries have the numbers 0 to 4',
    ),
    config(
        'option for one entry of several',
        None,
        {'model.neck.in_channels.1': 3},
        'model.neck.in_channels.1=3',
        'Give model.neck.in_channels as a whole',
    ),
    config(
        'option below a value',
        None,
        {'model.backbone.arch.x': 1},
        'model.backbone.arch.x=1',
        "model.backbone.arch is 't2', with no settings in it",
    ),
    config(
        'option that replaces a value by settings',
        None,
        {'model.backbone.arch': TINY},
        "model.backbone.arch={'widths'",
        '_delete_=True',
    ),
    config(
        'helper variable as an option',
        None,
        {'max_epochs': 24},
        'max_epochs=24 would change nothing',
        'Settings are train_cfg.max_epochs.',
    ),
    config(
        'pipeline as an option',
        None,
        {'train_pipeline.2.scale': (64, 64)},
        "does not read 'train_pipeline'",
        'train_dataloader.dataset.pipeline.2.scale',
    ),
    config(
        'option of no such name', None, {'optimiser.lr': 1}, "'optimiser'", 'Settings are', 'optim_wrapper'
    ),
    config('unknown arch in a config', None, {'model.backbone.arch': 't3'}, "arch='t3'", 't2, t4, s6'),
    config(
        'arch without its channels',
        None,
        {'model.backbone.arch': 'b1'},
        'model.neck.in_channels=[144, 272, 368]',
        'which must be [200, 376, 448]',
        '--arch b1 sets them all',
    ),
]


def coco_config() -> Config:
    dataset = dict(type='CocoDataset', pipeline=[dict(type='LoadAnnotations', with_mask=True)])
    train = dict(dataset, filter_cfg=dict(filter_empty_gt=True, min_size=32))
    return Config(
        dict(
            default_scope='mmdet',
            model=dict(bbox_head=dict(num_classes=80)),
            train_dataloader=dict(dataset=train),
            val_dataloader=dict(dataset=dataset),
        )
    )


def spoiled(
    name: str,
    make_data: Callable[[Path], Path],
    config: Callable[[], Config],
    change: Callable[[Path], Any],
    words: tuple[str, ...],
) -> Mistake:
    def make(folder: Path) -> Path:
        root = make_data(folder / 'data')
        change(root)
        return root

    return Mistake(name, make, lambda root: retarget(config(), root), words)


def coco(name: str, change: Callable[[Path], Any], *words: str) -> Mistake:
    """A data set in the COCO layout, spoiled by ``change(root)``."""
    return spoiled(name, make_coco, coco_config, change, words)


def labelled(name: str, change: Callable[[dict], Any], *words: str) -> Mistake:
    """The same with spoiled training annotations."""

    def edit(root: Path) -> None:
        content = json.loads((root / TRAIN).read_text())
        change(content)
        (root / TRAIN).write_text(json.dumps(content))

    return coco(name, edit, 'train2017', *words)


def each(part: str, **values: Any) -> Callable[[dict], Any]:
    return lambda content: [entry.update(values) for entry in content[part]]


def entry(part: str, position: int, **values: Any) -> Callable[[dict], Any]:
    return lambda content: content[part][position].update(values)


def without(part: str, position: int, field: str) -> Callable[[dict], Any]:
    return lambda content: content[part][position].pop(field)


def cut(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def picture(values: np.ndarray, path: str) -> Callable[[Path], Any]:
    return lambda root: Image.fromarray(values).save(root / path)


EMPTY = 'at least one entry is needed'
BOX = 'A box is [x, y, width, height] in pixels'
PHOTO = 'train2017/000001.jpg'

ANNOTATIONS = [
    labelled('annotations without images', lambda c: c.pop('images'), 'images, annotations, categories'),
    labelled('annotations of nothing', lambda c: c.clear(), 'not a COCO annotation file'),
    labelled('no image listed', lambda c: c['images'].clear(), "'images'", EMPTY),
    labelled('no object', lambda c: c['annotations'].clear(), "'annotations'", EMPTY),
    labelled('no category', lambda c: c['categories'].clear(), "'categories'", EMPTY),
    labelled('image id twice', entry('images', 1, id=0), "'images'", 'more than once: 0', 'its own id'),
    labelled(
        'object id twice', entry('annotations', 3, id=1), "'annotations'", 'more than once: 1', 'its own id'
    ),
    labelled(
        'category id twice', entry('categories', 1, id=1), "'categories'", 'more than once: 1', 'its own id'
    ),
    labelled(
        'category name twice', entry('categories', 1, name='square'), 'same name', 'square', 'its own name'
    ),
    labelled('category of no name', entry('categories', 1, name=7), 'name that is no str: 7', 'Correct'),
    labelled('id of a list', entry('images', 1, id=[1]), 'id that is no int or str: [1]', 'Correct'),
    labelled('image without width', without('images', 2, 'width'), "no 'width' (positions 2)", 'Each needs'),
    labelled(
        'image of no height', entry('images', 0, height=0), '"height"', 'positive number of pixels', 'ids 0'
    ),
    labelled(
        'object without area', without('annotations', 0, 'area'), "no 'area' (positions 0)", 'Each needs'
    ),
    labelled(
        'unknown category', entry('annotations', 0, category_id=7), "'categories' does not list: 7", 'remove'
    ),
    labelled('unknown image', entry('annotations', 0, image_id=70), "'images' does not list: 70", 'remove'),
    labelled('box of three', entry('annotations', 4, bbox=[1, 2, 3]), 'four finite numbers', 'ids 5', BOX),
    labelled(
        'box of text', entry('annotations', 4, bbox=[1, 2, 'a', 4]), 'four finite numbers', 'ids 5', BOX
    ),
    labelled('area NaN', entry('annotations', 4, area=float('nan')), '"area" that is not one', 'ids 5'),
    labelled('boxes as shares', each('annotations', bbox=[0.1, 0.1, 0.5, 0.5]), 'None of the 8 boxes', BOX),
    labelled('boxes outside', each('annotations', bbox=[500, 500, 9, 9]), 'None of the 8 boxes', BOX),
    labelled('boxes without area', each('annotations', area=0), 'None of the 8 boxes', 'positive "area"'),
    labelled('object without mask', without('annotations', 2, 'segmentation'), 'ids 3', 'boxes only'),
    labelled('images too small', each('images', width=30), 'smaller than 32 pixels', 'set min_size'),
    labelled(
        'category only in training', entry('categories', 1, name='x'), 'only in train: x', 'Write the same'
    ),
    labelled(
        'categories in another order',
        lambda c: c['categories'].reverse(),
        "'stripe' in train, 'square' in val",
        'in the same order',
    ),
    labelled('file missing', entry('images', 3, file_name='no.jpg'), '1 of 4', 'no.jpg', 'Copy them there'),
    labelled('file of no name', entry('images', 3, file_name=3), 'file_name that is no str: 3', 'Correct'),
    labelled('other size', entry('images', 3, width=97), 'is 96x80 pixels', 'says 97x80', 'Correct'),
]


def write(path: str, content: str | bytes) -> Callable[[Path], Any]:
    return lambda root: (root / path).write_bytes(content.encode() if isinstance(content, str) else content)


NOT_JSON = ('val2017.json is not a JSON file', 'write or copy it again')
NO_IMAGE = (PHOTO, '1 of 4 images cannot be read', 'Replace these files')
GREY = np.arange(96 * 80).reshape(80, 96) % 200

DETECTION_FILES = [
    Mistake(
        'no data root',
        lambda folder: folder / 'nowhere',
        lambda root: retarget(coco_config(), root),
        ('nowhere', 'is not a folder', 'annotations/instances_train2017.json', 'val2017/'),
    ),
    coco(
        'another layout',
        lambda r: (r / 'annotations').rename(r / 'labels'),
        f'lacks {TRAIN}',
        'holds: labels/',
    ),
    coco('folder missing', lambda r: (r / 'val2017').rename(r / 'val'), 'lacks val2017/', 'should look like'),
    coco('JSON cut short', lambda r: cut(r / VAL), *NOT_JSON),
    coco('JSON empty', write(VAL, ''), *NOT_JSON),
    coco('a page instead of JSON', write(VAL, '<html>'), *NOT_JSON),
    coco('JSON in another encoding', write(VAL, '{"ä": 1}'.encode('latin-1')), *NOT_JSON),
    coco(
        'JSON of detections',
        write(VAL, '[]'),
        'is not a COCO annotation file',
        'images, annotations, categories',
    ),
    coco('image empty', write(PHOTO, ''), *NO_IMAGE),
    coco('image cut short', lambda r: cut(r / PHOTO), *NO_IMAGE, 'truncated'),
    coco('a page instead of an image', write(PHOTO, '<html>'), *NO_IMAGE, 'cannot identify'),
    coco('a folder instead of an image', lambda r: [(r / PHOTO).unlink(), (r / PHOTO).mkdir()], *NO_IMAGE),
    Mistake(
        'image of 32 bits',
        lambda folder: with_images(folder / 'coco', GREY.astype(np.float32), '.tiff'),
        lambda root: retarget(coco_config(), root),
        ('000001.tiff', 'its pixels have 32 bits', 'convert it to 8 or 16 bits'),
    ),
    Mistake(
        'images of 12 bits in 16',
        lambda folder: with_images(folder / 'coco', GREY.astype(np.uint16), '.png'),
        lambda root: retarget(coco_config(), root),
        ('4 of 4 images have 16 bits', '199 of 65535', 'Scale them'),
    ),
    Mistake(
        'data of the config missing',
        lambda folder: engine.load_config(str(write_config(folder / 'config.py', DET_CONFIG))),
        check_data_exists,
        ('data/coco/annotations/instances_train2017.json does not exist', '--data-root'),
    ),
]


def with_images(root: Path, pixels: np.ndarray, suffix: str) -> Path:
    """A data set in the COCO layout whose images are all the same."""
    make_coco(root, sizes=((96, 80),))
    for split in ('train', 'val'):
        path = root / f'annotations/instances_{split}2017.json'
        path.write_text(path.read_text().replace('.jpg', suffix))
        for old in (root / f'{split}2017').iterdir():
            Image.fromarray(pixels).save(old.with_suffix(suffix))
            old.unlink()
    return root


def ade_config() -> Config:
    loader = dict(dataset=dict(type='ADE20KDataset', pipeline=[]))
    return Config(
        dict(
            default_scope='mmseg',
            model=dict(decode_head=dict(num_classes=150)),
            train_dataloader=loader,
            val_dataloader=loader,
        )
    )


def ade(name: str, change: Callable[[Path], Any], *words: str) -> Mistake:
    """A data set in the ADE layout, spoiled by ``change(root)``."""
    return spoiled(name, make_ade, ade_config, change, words)


def all_maps(values: np.ndarray) -> Callable[[Path], Any]:
    return lambda root: [Image.fromarray(values).save(p) for p in root.glob('annotations/*/*.png')]


MAP = 'annotations/validation/001.png'
NAMES = 'classes.txt'
ONE_CHANNEL = 'one 8-bit channel (mode L or P)'
ONES = np.ones((72, 80), np.uint8)

SEGMENTATION_FILES = [
    ade('no list of classes', lambda r: (r / NAMES).unlink(), f'lacks {NAMES}', 'one class name per line'),
    ade(
        'maps elsewhere', lambda r: (r / 'annotations').rename(r / 'labels'), 'lacks annotations/', 'holds: '
    ),
    ade('blank line', write(NAMES, 'a\n\nb\n'), NAMES, 'blank lines (2)', 'every line needs a name'),
    ade('class twice', write(NAMES, 'a\nb\na\n'), NAMES, 'names a more than once', 'different names'),
    ade('one class', write(NAMES, 'a\n'), 'names 1 classes', '2 to 254', 'a background'),
    ade('255 classes', write(NAMES, '\n'.join(map(str, range(255)))), 'names 255 classes', '2 to 254'),
    ade('classes in another encoding', write(NAMES, b'a\n\xff\n'), NAMES, 'not a text file in UTF-8'),
    ade('too few classes', write(NAMES, 'a\nb\n'), 'holds 3', 'Allowed are 1 to 2', 'Add the missing names'),
    ade(
        'value out of range', picture(ONES * 9, MAP), MAP, 'holds 9', 'Allowed are 1 to 3', 'correct the map'
    ),
    ade('maps of 0 and 255', all_maps(ONES * 255), 'hold 255 alone', 'write 1 to 3 into the maps'),
    ade(
        'map in colours',
        picture(np.stack([ONES] * 3, 2), MAP),
        MAP,
        'mode RGB',
        ONE_CHANNEL,
        'no class numbers',
    ),
    ade('map as JPEG', lambda r: Image.fromarray(ONES).save(r / MAP, 'JPEG'), MAP, 'a JPEG file', 'as PNG'),
    ade('map with alpha', picture(np.stack([ONES] * 4, 2), MAP), MAP, 'mode RGBA', ONE_CHANNEL),
    ade('map of 16 bits', picture(ONES.astype(np.uint16), MAP), MAP, 'mode I;16', ONE_CHANNEL),
    ade('map of bits', picture(ONES.astype(bool), MAP), MAP, 'mode 1', ONE_CHANNEL),
    ade(
        'map of another size', picture(np.ones((72, 81), np.uint8), MAP), MAP, '81x72', '80x72', 'of one size'
    ),
    ade('map cut short', lambda r: cut(r / MAP), MAP, 'cannot be read', 'Write or copy it again'),
    ade('map missing', lambda r: (r / MAP).unlink(), '1 of 2 images', '001.png', 'Add the maps or remove'),
    ade('photo cut short', lambda r: cut(r / 'images/training/002.jpg'), '002.jpg', 'truncated', 'Replace'),
    ade(
        'images of two kinds',
        lambda r: (r / 'images/training/003.jpg').rename(r / 'images/training/003.png'),
        'end in .jpg, .png',
        'rename them to one',
    ),
    ade(
        'no images',
        lambda r: [p.unlink() for p in r.glob('images/training/*')],
        'images/training holds no image',
        '.jpg, .png',
    ),
]


class Code:
    """A pickle of it makes a folder when it is loaded."""

    def __reduce__(self):
        return os.mkdir, ('executed',)


def checkpoint(name: str, make: Callable[[Path], Any], *words: str) -> Mistake:
    """A file ``x.pth`` in the present folder, written by ``make(path)``."""

    def write_file(folder: Path) -> str:
        make(folder / 'x.pth')
        return 'x.pth'

    return Mistake(name, write_file, lambda path: load_pretrained(MobileMamba(TINY), path), ('x.pth', *words))


def saved(content: Any, **options: Any) -> Callable[[Path], Any]:
    return lambda path: torch.save(content() if callable(content) else content, path, **options)


def half_a_checkpoint(path: Path) -> None:
    torch.save(MobileMamba(TINY).state_dict(), path)
    cut(path)


def tiny_weights(change: Callable[[dict], Any]) -> dict[str, torch.Tensor]:
    weights = dict(MobileMamba(TINY).state_dict())
    change(weights)
    return weights


COULD_RUN = 'are refused because loading them could run code'
CUT_SHORT = 'it may be cut short or no checkpoint at all, download it again'
CHECKPOINTS = [
    checkpoint('checkpoint missing', lambda path: None, 'does not exist', 'give the path'),
    checkpoint('checkpoint empty', lambda path: path.touch(), CUT_SHORT),
    checkpoint('half a checkpoint', half_a_checkpoint, CUT_SHORT),
    checkpoint('two letters', lambda path: path.write_text('hi'), 'cannot be read; it may be cut short'),
    checkpoint('a page', lambda path: path.write_text('<!DOCTYPE html>'), 'is not a PyTorch checkpoint'),
    checkpoint('code', saved({'state_dict': Code()}), COULD_RUN),
    checkpoint('code in an old file', saved(Code(), _use_new_zipfile_serialization=False), COULD_RUN),
    checkpoint('code in a pickle', lambda path: path.write_bytes(pickle.dumps(Code())), COULD_RUN),
    checkpoint('no state dict', saved([1, 2]), 'holds a list', 'state_dict'),
    checkpoint('numbers only', saved({'epoch': 3}), 'holds epoch', 'expected are tensors'),
    checkpoint(
        'another model', saved(lambda: torch.nn.Linear(2, 2).state_dict()), 'weight, bias', 'not in the model'
    ),
    checkpoint('another variant', saved(lambda: MobileMamba('t2').state_dict()), "arch 't2'", 'change arch'),
    checkpoint(
        'tensor missing', saved(lambda: tiny_weights(lambda w: w.pop('stem.0.conv.weight'))), 'stem.0.conv'
    ),
    checkpoint(
        'tensor too many',
        saved(lambda: tiny_weights(lambda w: w.update(x=torch.ones(1)))),
        'not in the model: x',
    ),
    checkpoint(
        'a whole detector',
        saved(lambda: {f'backbone.{k}': v for k, v in MobileMamba(TINY).state_dict().items()}),
        'add prefix="backbone."',
    ),
    checkpoint(
        'a folded backbone',
        saved(lambda: folded().state_dict()),
        'fused by switch_to_deploy()',
        'take the checkpoint of the training',
    ),
    Mistake(
        'no checkpoint named',
        lambda folder: MobileMamba(TINY, init_cfg=dict(type='Pretrained')),
        MobileMamba.init_weights,
        ('names no checkpoint', 'add checkpoint=FILE'),
    ),
]


def folded() -> MobileMamba:
    model = MobileMamba(TINY).eval()
    model.switch_to_deploy()
    return model


def one_image(name: str, make: Callable[[Path], Any], *words: str) -> Mistake:
    def write_file(folder: Path) -> Path:
        make(folder / 'x.png')
        return folder / 'x.png'

    return Mistake(name, write_file, read_image, ('x.png', *words))


PICTURES = [
    one_image('picture missing', lambda path: None, 'No such file'),
    one_image('picture empty', lambda path: path.touch(), 'the file is empty'),
    one_image('picture of text', lambda path: path.write_text('hello'), 'cannot be read as an image'),
    one_image(
        'picture cut short',
        lambda path: [Image.fromarray(ONES).resize((999, 999)).save(path), cut(path)],
        'truncated',
    ),
    one_image(
        'picture of 32 bits',
        lambda path: Image.fromarray(GREY.astype(np.float32)).save(path, 'TIFF'),
        'MMCV cannot read',
        'convert it to PNG or JPEG',
    ),
]


PLACES = [
    Mistake(
        'work dir below a file',
        lambda folder: (folder / 'file').touch(),
        lambda _: check_writable('file/run', '--work-dir'),
        ("'file/run'", 'Choose another folder with --work-dir'),
    ),
    Mistake(
        'work dir where nothing can be made',
        lambda folder: None,
        lambda _: check_writable('/proc/run', '--work-dir'),
        ("'/proc/run'", 'Choose another folder with --work-dir'),
    ),
]

MISTAKES = (
    BACKBONE + CONFIGS + ANNOTATIONS + DETECTION_FILES + SEGMENTATION_FILES + CHECKPOINTS + PICTURES + PLACES
)


def content_of(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob('*')}


@pytest.mark.parametrize('mistake', MISTAKES, ids=lambda mistake: mistake.name.replace(' ', '_'))
def test_mistake(mistake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = mistake.make(tmp_path)
    before = content_of(tmp_path)
    with pytest.raises(ValueError) as caught:
        mistake.call(given)
    message = str(caught.value)
    missing = [word for word in mistake.words if word not in message]
    assert not missing, f'{message!r} lacks {missing}'
    assert 'Traceback' not in message
    assert content_of(tmp_path) == before


# Of a command line, with a working config, a data set in "coco" and the files of `folder_of_files` at hand.
CHECKPOINT_ERROR = ("'page.pth' is not a PyTorch checkpoint",)
COMMANDS = {
    'train.py none.py': ("'none.py' does not exist", 'holds: config.py'),
    'test.py none.py x.pth': ("'none.py' does not exist", 'holds: config.py'),
    'train.py config.py --arch t4 --cfg-options model.backbone.out_indices=[1,9]': (
        'out_indices=[1, 9]',
        '1, 2, 3',
    ),
    'train.py config.py --cfg-options model.backbone.frozen_stages=9': ('frozen_stages=9', '-1 (none)'),
    'train.py config.py --cfg-options model.backbone.scan=torch': ("'scan'", 'scan_backend'),
    'train.py config.py': ('data/coco/annotations/instances_train2017.json does not exist', '--data-root'),
    'train.py config.py --data-root nowhere': ("'nowhere' is not a folder", 'val2017/'),
    'train.py config.py --data-root coco --work-dir file': ("Cannot write to 'file'", '--work-dir'),
    'train.py config.py --data-root coco --reinit bbox_head': ('--reinit goes with --load-from',),
    'train.py config.py --data-root coco --launcher pytorch': ('torchrun', 'tools/dist_train.sh'),
    'train.py config.py --data-root coco --resume none.pth': ("'none.pth' does not exist",),
    'train.py config.py --data-root coco --resume page.pth': CHECKPOINT_ERROR,
    'train.py config.py --data-root coco --load-from page.pth': CHECKPOINT_ERROR,
    'train.py config.py --data-root coco --load-from code.pth': ("'code.pth'", COULD_RUN),
    'test.py config.py none.pth --data-root coco': ("'none.pth' does not exist",),
    'test.py config.py page.pth --data-root coco': CHECKPOINT_ERROR,
    'test.py config.py code.pth --data-root coco': ("'code.pth'", COULD_RUN),
    'infer.py config.py page.pth coco/val2017': CHECKPOINT_ERROR,
    'infer.py config.py code.pth coco/val2017': ("'code.pth'", COULD_RUN),
    'infer.py config.py page.pth nowhere': ('No image to predict on',),
    'convert_checkpoint.py page.pth new.pth': CHECKPOINT_ERROR,
    'convert_checkpoint.py code.pth new.pth': ("'code.pth'", COULD_RUN),
}


@pytest.fixture
def folder_of_files(tmp_path) -> Path:
    write_config(tmp_path / 'config.py', DET_CONFIG)
    make_coco(tmp_path / 'coco')
    (tmp_path / 'file').touch()
    (tmp_path / 'page.pth').write_text('<html>not found</html>')
    torch.save({'state_dict': Code()}, tmp_path / 'code.pth')
    return tmp_path


@pytest.mark.parametrize('command', COMMANDS)
def test_command(command, folder_of_files, tool, monkeypatch, capsys):
    def never(*args, **kwargs):
        raise AssertionError('the runner was built')

    monkeypatch.setattr('mmmobilemamba.engine.build_runner', never)
    before = content_of(folder_of_files)
    with pytest.raises(SystemExit) as caught:
        tool(*command.split())
    message = caught.value.code
    if message == 2:
        message = capsys.readouterr().err
    missing = [word for word in COMMANDS[command] if word not in message]
    assert not missing, f'{message!r} lacks {missing}'
    assert content_of(folder_of_files) == before


def test_the_user_sees_one_message(folder_of_files):
    """What Python itself prints of it all: the message and no more."""
    (folder_of_files / PHOTO.replace('train', 'coco/train')).write_bytes(b'')
    command = (sys.executable, REPOSITORY / 'tools/train.py', 'config.py', '--data-root', 'coco')
    before = content_of(folder_of_files)
    done = subprocess.run(list(map(str, command)), cwd=folder_of_files, capture_output=True, text=True)
    assert done.returncode == 1
    assert re.fullmatch(r'error: 1 of 4 images cannot be read as an image: .*000001.jpg.*\n', done.stderr)
    assert content_of(folder_of_files) == before


def test_checkpoint_of_other_classes_is_no_case_for_reinit(folder_of_files, tool):
    cfg = engine.load_config('config.py')
    init_default_scope('mmdet')
    torch.save(MODELS.build(cfg.model).state_dict(), 'eighty.pth')
    with pytest.raises(SystemExit, match='(?s)bbox_head.retina_cls.*data with its classes') as caught:
        tool('test.py', 'config.py', 'eighty.pth', '--data-root', 'coco')
    assert 'reinit' not in caught.value.code
    train = ('train.py', 'config.py', '--data-root', 'coco', '--work-dir', 'run', '--load-from', 'eighty.pth')
    with pytest.raises(SystemExit, match='--reinit bbox_head.retina_cls$'):
        tool(*train)


needs_dev_full = pytest.mark.skipif(not Path('/dev/full').exists(), reason='this system has no /dev/full')


class TestFullDisk:
    """Linux has a file whose disk is full."""

    @needs_dev_full
    def test_before_the_work(self, monkeypatch, tmp_path):
        monkeypatch.setattr(tempfile, 'TemporaryFile', lambda dir: io.FileIO('/dev/full', 'w'))
        with pytest.raises(UserError, match='No space left on device.*--work-dir'):
            check_writable(tmp_path, '--work-dir')

    @needs_dev_full
    def test_at_a_checkpoint(self, folder_of_files, tool):
        """The checkpoint before it is kept, and is where the run goes on."""
        train = ('train.py', 'config.py', '--data-root', 'coco', '--work-dir', 'run', '--no-validate')
        more = ('--cfg-options', 'train_cfg.max_epochs=3', 'default_hooks.checkpoint.max_keep_ckpts=1')
        run = folder_of_files / 'run'
        run.mkdir()
        (run / '.epoch_2.pth.part').symlink_to('/dev/full')
        with pytest.raises(SystemExit, match='disk is full.*run/epoch_2.pth.*is kept.*--resume'):
            tool(*train, *more)
        assert sorted(p.name for p in run.glob('*.pth')) == ['epoch_1.pth']
        tool(*train, '--resume', *more)
        assert sorted(p.name for p in run.glob('*.pth')) == ['epoch_2.pth', 'epoch_3.pth']


def test_names_are_different():
    assert len({mistake.name for mistake in MISTAKES}) == len(MISTAKES) >= 60


def test_pickled_code_would_run(tmp_path, monkeypatch):
    """What the table says of code means something: any other way of loading runs it."""
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Code()))
    assert Path('executed').is_dir()
