"""Tiny data sets and models that the tests share."""

import json
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmmobilemamba import MobileMamba
from mmmobilemamba.arch import Arch
from mmmobilemamba.datasets.data_root import set_num_classes

REPOSITORY = Path(__file__).parent.parent
TINY = dict(widths=[16, 24, 32], depths=[1, 1, 1])
# Small, and computed by the compiled library when folded: with and without channels of a local branch and of
# the identity, no multiples of a vector among them.
FOLDABLE = dict(
    widths=[32, 88, 112], depths=[2, 1, 2], global_ratios=[1.0, 0.7, 0.6], local_ratios=[0.0, 0.2, 0.2]
)
CLASSES = ('square', 'stripe')


def as_trained(module: nn.Module) -> nn.Module:
    """Random statistics and scales, as training would leave them: no residual branch is silent."""
    for m in module.modules():
        if isinstance(m, _BatchNorm):
            for tensor in (m.weight.data, m.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (m.bias.data, m.running_mean):
                tensor.normal_(0, 0.1)
    for name, parameter in module.named_parameters():
        if 'scale' in name:
            parameter.data.normal_(0.5, 0.3)
    return module.eval()


def folded_modules(
    kind: type, arch: str | dict = FOLDABLE, dtype: torch.dtype = torch.float32, **options
) -> list[nn.Module]:
    """Those of that kind in a folded MobileMamba."""
    torch.manual_seed(0)
    model = as_trained(MobileMamba(arch, **options))
    model.switch_to_deploy()
    return [m for m in model.to(dtype).modules() if isinstance(m, kind)]


def build_retinanet(
    arch: str | dict = 't2', out_indices=(1, 2, 3), num_classes: int = 3, strides=(8, 16, 32, 64), **options
) -> nn.Module:
    """A RetinaNet with a narrow neck and head of one level for each stride."""
    init_default_scope('mmdet')
    widths = Arch.create(arch).widths
    anchors = dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=1, ratios=[1.0])
    return MODELS.build(
        dict(
            type='RetinaNet',
            backbone=dict(type='MobileMamba', arch=arch, out_indices=out_indices, **options),
            neck=dict(
                type='EfficientViTFPN',
                in_channels=[widths[i - 1] for i in out_indices],
                out_channels=8,
                num_outs=len(strides),
            ),
            bbox_head=dict(
                type='RetinaHead',
                num_classes=num_classes,
                in_channels=8,
                feat_channels=8,
                stacked_convs=1,
                anchor_generator=dict(**anchors, strides=strides),
            ),
        )
    )


def make_picture(rng: np.random.Generator, width: int, height: int):
    """Noise with one bright rectangle per class, and the rectangles as (class, x, y, w, h)."""
    picture = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
    objects = []
    for label, (w, h) in enumerate([(24, 24), (32, 12)]):
        x = int(rng.integers(0, width - w))
        y = label * height // 2 + int(rng.integers(0, height // 2 - h))
        picture[y : y + h, x : x + w] = (250, 80, 80) if label else (80, 250, 250)
        objects.append((label, x, y, w, h))
    return picture, objects


def make_coco(root: Path, sizes: tuple[tuple[int, int], ...] = ((64, 72), (96, 80))) -> Path:
    """A tiny data set in the COCO layout: four training images and two validation images."""
    rng = np.random.default_rng(0)
    (root / 'annotations').mkdir(parents=True)
    for split, count in (('train', 4), ('val', 2)):
        (root / f'{split}2017').mkdir()
        images, annotations = [], []
        for i in range(count):
            width, height = sizes[i % len(sizes)]
            picture, objects = make_picture(rng, width, height)
            name = f'{i:06}.jpg'
            Image.fromarray(picture).save(root / f'{split}2017' / name)
            images.append(dict(id=i, file_name=name, width=width, height=height))
            for label, x, y, w, h in objects:
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=i,
                        category_id=label + 1,
                        bbox=[x, y, w, h],
                        area=w * h,
                        iscrowd=0,
                        segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]],
                    )
                )
        categories = [dict(id=i, name=name) for i, name in enumerate(CLASSES, start=1)]
        content = dict(images=images, annotations=annotations, categories=categories)
        path = root / f'annotations/instances_{split}2017.json'
        path.write_text(json.dumps(content))
    return root


def make_ade(root: Path) -> Path:
    """A tiny data set in the ADE layout, with a border of ignored pixels (0)."""
    rng = np.random.default_rng(0)
    root.mkdir(exist_ok=True)
    (root / 'classes.txt').write_text('\n'.join(('background', *CLASSES)) + '\n')
    for split, count in (('training', 4), ('validation', 2)):
        for kind in ('images', 'annotations'):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            picture, objects = make_picture(rng, 80, 72)
            labels = np.ones(picture.shape[:2], np.uint8)
            for label, x, y, w, h in objects:
                labels[y : y + h, x : x + w] = label + 2
            labels[:2] = 0
            Image.fromarray(picture).save(root / f'images/{split}/{i:03}.jpg')
            Image.fromarray(labels).save(root / f'annotations/{split}/{i:03}.png')
    return root


DET_CONFIG = """
_base_ = 'REPOSITORY/configs/det/retinanet_mobilemamba.py'
model = dict(
    backbone=dict(arch='t2'),
    neck=dict(in_channels=[144, 272, 368], out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32, stacked_convs=1),
)
train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = (96, 96)
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (96, 96)
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=1)
default_hooks = dict(logger=dict(interval=1))
"""

SEG_CONFIG = """
_base_ = [
    'mmseg::_base_/models/pspnet_r50-d8.py',
    'mmseg::_base_/datasets/ade20k.py',
    'mmseg::_base_/default_runtime.py',
    'mmseg::_base_/schedules/schedule_80k.py',
]
custom_imports = dict(imports=['mmmobilemamba'], allow_failed_imports=False)
crop_size = (64, 64)
model = dict(
    data_preprocessor=dict(size=crop_size),
    pretrained=None,
    backbone=dict(_delete_=True, type='MobileMamba', arch='t2', out_indices=(2, 3)),
    decode_head=dict(in_channels=368, in_index=1, channels=32, num_classes=150),
    auxiliary_head=dict(in_channels=272, in_index=0, channels=32, num_classes=150),
)
train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = (128, 64)
train_pipeline[3].crop_size = crop_size
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (128, 64)
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=2, val_interval=2)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
"""


def write_config(path: Path, text: str) -> Path:
    path.write_text(text.replace('REPOSITORY', str(REPOSITORY)))
    return path


def make_checkpoint(config: Path, classes: tuple[str, ...], out: Path, **meta) -> Path:
    """Random weights for as many classes as are named."""
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    set_num_classes(cfg.model, len(classes))
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    torch.save(
        dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=classes, **meta))), out
    )
    return out
