import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLASSES = ('square', 'stripe')


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


@pytest.fixture
def coco_root(tmp_path: Path) -> Path:
    return make_coco(tmp_path / 'coco')


@pytest.fixture
def ade_root(tmp_path: Path) -> Path:
    return make_ade(tmp_path / 'ade')
