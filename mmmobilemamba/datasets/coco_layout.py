"""Reads a split of a data set in the COCO layout and refuses what would go wrong unnoticed."""

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import print_log

from ..errors import UserError
from .layout import check_images, check_layout, duplicates, shorten

COCO_LAYOUT = """
annotations/instances_train2017.json
annotations/instances_val2017.json
train2017/   the training images
val2017/     the validation images
"""
FAR = 10  # times the longer side
SIDES = ('width', 'height')


@dataclass(frozen=True)
class CocoSplit:
    """Where a split lies, relative to the data root, and what it holds (None: not looked at)."""

    ann_file: str
    image_folder: str
    classes: tuple[str, ...] | None = None
    num_images: int | None = None

    @classmethod
    def named(cls, split: str) -> 'CocoSplit':
        """The split 'train' or 'val', unseen."""
        return cls(f'annotations/instances_{split}2017.json', f'{split}2017/')


def read_coco_split(
    root: Path, split: str, with_masks: bool = False, filter_cfg: Mapping[str, Any] | None = None
) -> CocoSplit:
    """Read and check one split.

    Args:
        root: The data set.
        split: 'train' or 'val'; what only the evaluation needs is asked of 'val' alone.
        with_masks: Whether every object needs a mask too.
        filter_cfg: What ``CocoDataset`` will leave out: ``filter_empty_gt``, ``min_size``.

    Returns:
        The split; its classes are in the order of the annotation file, which is the order of the
        labels.

    Raises:
        UserError: If files are missing, or the annotations are not usable.
    """
    place = CocoSplit.named(split)
    check_layout(root, [place.ann_file], [place.image_folder.rstrip('/')], COCO_LAYOUT)
    path = root / place.ann_file
    content = _read_json(path)
    classes = _check_categories(path, content['categories'])
    _check_images(path, content['images'])
    _check_annotations(path, content)
    if with_masks:
        _check_masks(path, content, evaluated=split == 'val')
    _check_crowds(path, content['annotations'], needed=split == 'val')
    if split == 'val':
        _check_ids_for_evaluation(path, content)
    _check_boxes(path, content)
    _check_filter(path, content, filter_cfg or {})
    _check_image_files(root / place.image_folder, content['images'])
    return replace(place, classes=classes, num_images=len(content['images']))


def _read_json(path: Path) -> dict[str, list[dict]]:
    try:
        # As pycocotools will read it, which takes no byte order mark.
        content = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise UserError(
            f'{path} is not a JSON file ({error}). It may be cut short; write or copy it again.'
        ) from error
    parts = ('images', 'annotations', 'categories')
    if not isinstance(content, dict) or not all(isinstance(content.get(p), list) for p in parts):
        raise UserError(
            f'{path} is not a COCO annotation file: that is an object with the lists '
            f'{", ".join(parts)}, but this file holds '
            f'{(shorten(content) or "nothing") if isinstance(content, dict) else type(content).__name__}.'
        )
    for part in parts:
        if not content[part]:
            raise UserError(f'The list {part!r} of {path} is empty; at least one entry is needed.')
    return content


def _check_fields(path: Path, part: str, entries: list[dict], fields: tuple[str, ...]) -> None:
    for field in fields:
        bad = [i for i, e in enumerate(entries) if not isinstance(e, dict) or field not in e]
        if bad:
            raise UserError(
                f'{len(bad)} of {len(entries)} entries in {part!r} of {path} have no {field!r} '
                f'(positions {shorten(bad)}). Each needs {", ".join(fields)}.'
            )


def _check_types(path: Path, part: str, entries: list[dict], field: str, *kinds: type) -> None:
    wrong = [entry[field] for entry in entries if not isinstance(entry[field], kinds)]
    if wrong:
        allowed = ' or '.join(kind.__name__ for kind in kinds)
        raise UserError(
            f'{len(wrong)} of {len(entries)} entries in {part!r} of {path} have a {field} that is no '
            f'{allowed}: {shorten(map(repr, wrong))}. Correct them.'
        )


def _check_unique(path: Path, part: str, entries: list[dict], field: str = 'id') -> None:
    if repeated := duplicates(entry[field] for entry in entries):
        raise UserError(
            f'{part!r} of {path} use the same {field} more than once: {shorten(repeated)}. '
            f'Give every entry its own {field}.'
        )


def _check_categories(path: Path, categories: list[dict]) -> tuple[str, ...]:
    _check_fields(path, 'categories', categories, ('id', 'name'))
    _check_types(path, 'categories', categories, 'id', int)
    _check_types(path, 'categories', categories, 'name', str)
    _check_unique(path, 'categories', categories)
    _check_unique(path, 'categories', categories, 'name')
    return tuple(category['name'] for category in categories)


def _check_images(path: Path, images: list[dict]) -> None:
    _check_fields(path, 'images', images, ('id', 'file_name', 'width', 'height'))
    _check_types(path, 'images', images, 'id', int, str)
    _check_types(path, 'images', images, 'file_name', str)
    _check_unique(path, 'images', images)
    bad = [i['id'] for i in images if not all(_is_number(i[k]) and i[k] > 0 for k in SIDES)]
    if bad:
        raise UserError(
            f'{len(bad)} of {len(images)} images of {path} have a "width" or "height" that is not '
            f'a positive number of pixels (ids {shorten(bad)}).'
        )


def _check_annotations(path: Path, content: dict[str, list[dict]]) -> None:
    annotations = content['annotations']
    fields = ('id', 'image_id', 'category_id', 'bbox', 'area')
    _check_fields(path, 'annotations', annotations, fields)
    for field in ('id', 'image_id', 'category_id'):
        _check_types(path, 'annotations', annotations, field, int, str)
    _check_unique(path, 'annotations', annotations)
    for field, part in (('image_id', 'images'), ('category_id', 'categories')):
        known = {entry['id'] for entry in content[part]}
        unknown = [a for a in annotations if a[field] not in known]
        if unknown:
            raise UserError(
                f'{len(unknown)} of {len(annotations)} annotations of {path} have a {field} that '
                f'{part!r} does not list: {shorten(map(repr, dict.fromkeys(a[field] for a in unknown)))}. '
                f'Add the missing {part} or remove these annotations.'
            )


def _check_masks(path: Path, content: dict[str, list[dict]], evaluated: bool) -> None:
    annotations = content['annotations']
    bad = [a['id'] for a in annotations if not a.get('segmentation')]
    if bad:
        raise UserError(
            f'{len(bad)} of {len(annotations)} annotations of {path} have no "segmentation", '
            f'but this config learns masks (ids {shorten(bad)}). Add the masks, or use a '
            'config that needs boxes only.'
        )
    sizes = {image['id']: [image['height'], image['width']] for image in content['images']}
    problems = {a['id']: _mask_problem(a['segmentation'], sizes[a['image_id']]) for a in annotations}
    wrong = [f'id {key}: {problem}' for key, problem in problems.items() if problem]
    if wrong:
        raise UserError(
            f'{len(wrong)} of {len(annotations)} annotations of {path} have a "segmentation" that is no mask '
            f'({shorten(wrong, 5)}). Allowed are a list of polygons [x1, y1, x2, y2, x3, y3, ...] in pixels, '
            'or a run-length encoding {"size": [height, width], "counts": ...} of the size of the image.'
        )
    polygons = {a['id']: a['segmentation'] for a in annotations if isinstance(a['segmentation'], list)}
    flat = [key for key, mask in polygons.items() if not _has_area(mask, evaluated)]
    if flat and evaluated:
        raise UserError(
            f'{len(flat)} of {len(annotations)} annotations of {path} have a "segmentation" that begins with '
            f"a polygon of one or two points, on which COCO's evaluation fails (ids {shorten(flat)}). "
            'Remove such polygons, and objects that have no other one.'
        )
    if flat:
        print_log(
            f'{path}: {len(flat)} of {len(annotations)} objects are left out: no polygon of their masks has '
            'three points and an even count of numbers.',
            logger='current',
        )


def _mask_problem(mask: Any, size: list[float]) -> str | None:
    if isinstance(mask, list):
        if not all(map(_is_polygon, mask)):
            return 'a polygon that is not a list of finite numbers'
        # Coordinates of another unit would take any time and memory.
        far = FAR * max(size)
        return (
            'a polygon far outside its image' if np.abs(np.concatenate(mask)).max(initial=0) > far else None
        )
    if not isinstance(mask, dict):
        return f'a {type(mask).__name__}'
    counts = mask.get('counts')
    if mask.get('size') != size:
        return f'size {mask.get("size")}, but its image is {size}'
    runs = counts if isinstance(counts, list) else _decompressed(counts)
    whole = all(isinstance(n, int) and n >= 0 for n in runs)
    return None if whole and sum(runs) == size[0] * size[1] else 'counts that do not fill the image'


def _decompressed(counts: Any) -> list[int]:
    """The run lengths in COCO's compressed text; none if it ends amid a number.

    pycocotools reads a text that is wrong beyond its end.
    """
    runs: list[int] = []
    number = shift = 0
    for char in str(counts).encode():
        code = char - 48
        number |= (code & 31) << shift
        shift += 5
        if not code & 32:  # the last five bits of a number, the highest of them its sign
            number -= (code & 16) << shift - 4
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = shift = 0
    return [] if shift else runs


def _is_polygon(points: Any) -> bool:
    try:
        numbers = np.array(points)
    except ValueError:  # lists of several lengths
        return False
    return numbers.ndim == 1 and numbers.dtype.kind in 'iuf' and bool(np.isfinite(numbers).all())


def _has_area(polygons: list[list[float]], evaluated: bool) -> bool:
    """By the rule by which CocoDataset drops polygons without a word; the evaluation looks at the first."""
    if evaluated:
        return len(polygons[0]) > 4
    return any(len(points) >= 6 and len(points) % 2 == 0 for points in polygons)


def _check_crowds(path: Path, annotations: list[dict], needed: bool) -> None:
    # Training takes an object for a single one if nothing else is said, the evaluation fails then.
    allowed = (0, 1) if needed else (0, 1, None)
    bad = [a['id'] for a in annotations if a.get('iscrowd') not in allowed]
    if bad:
        raise UserError(
            f'{len(bad)} of {len(annotations)} annotations of {path} have no "iscrowd" that is 0 or 1 (ids '
            f"{shorten(bad)}). Write 0 for single objects and 1 for crowds; COCO's evaluation needs it."
        )
    if all(a.get('iscrowd') for a in annotations):
        raise UserError(
            f'All {len(annotations)} annotations of {path} have "iscrowd" 1. Crowds are neither learned nor '
            'counted; write 0 for single objects, whatever form their masks have.'
        )


def _check_ids_for_evaluation(path: Path, content: dict[str, list[dict]]) -> None:
    """Refuse ids that training takes, but pycocotools counts wrongly or fails on afterwards."""
    _check_types(path, 'annotations', content['annotations'], 'id', int)
    if any(a['id'] == 0 for a in content['annotations']):
        raise UserError(
            f'An annotation of {path} has the id 0, which stands for "no object" in COCO\'s evaluation: it '
            'would count this object as missed even if it is found. Number the annotations from 1.'
        )
    kinds = sorted({type(image['id']).__name__ for image in content['images']})
    if len(kinds) > 1:
        raise UserError(
            f"The ids in 'images' of {path} are partly {' and partly '.join(kinds)}, which COCO's "
            'evaluation cannot sort. Use one type for all, in the image_id of the annotations as well.'
        )


def _check_boxes(path: Path, content: dict[str, list[dict]]) -> None:
    annotations = content['annotations']
    form = 'A box is [x, y, width, height] in pixels'
    bad = [
        a['id']
        for a in annotations
        if not (isinstance(a['bbox'], list) and len(a['bbox']) == 4)
        or not all(map(_is_number, (*a['bbox'], a['area'])))
    ]
    if bad:
        raise UserError(
            f'{len(bad)} of {len(annotations)} annotations of {path} have a "bbox" that is not '
            f'four finite numbers or an "area" that is not one (ids {shorten(bad)}). {form}.'
        )
    x, y, w, h = np.array([a['bbox'] for a in annotations], float).T
    sizes = {image['id']: (image['width'], image['height']) for image in content['images']}
    width, height = np.array([sizes[a['image_id']] for a in annotations], float).T
    outside = (x >= width) | (y >= height) | (x + w <= 0) | (y + h <= 0)
    area = np.array([a['area'] for a in annotations], float)
    # The rule by which CocoDataset drops boxes without a word.
    useless = outside | (w < 1) | (h < 1) | (area <= 0)
    if useless.all():
        raise UserError(
            f'None of the {len(useless)} boxes of {path} is at least one pixel wide and high, '
            f'inside its image, and has a positive "area". {form}.'
        )
    if useless.any():
        print_log(
            f'{path}: {useless.sum()} of {len(useless)} boxes are left out: under one pixel, '
            f'outside their image, or without area (ids {_ids(annotations, useless)}).',
            logger='current',
            level=logging.WARNING,
        )
    beyond = (x < -1) | (y < -1) | (x + w > width + 1) | (y + h > height + 1)
    if (beyond & ~useless).any():
        print_log(
            f'{path}: {(beyond & ~useless).sum()} of {len(useless)} boxes reach beyond their '
            f'image (ids {_ids(annotations, beyond & ~useless)}). {form}, not two corners.',
            logger='current',
            level=logging.WARNING,
        )


def _ids(annotations: list[dict], chosen: np.ndarray) -> str:
    return shorten(annotations[i]['id'] for i in np.flatnonzero(chosen))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < float('inf')


def _check_filter(path: Path, content: dict[str, list[dict]], filter_cfg: Mapping[str, Any]) -> None:
    images = content['images']
    min_size = filter_cfg.get('min_size', 0)
    annotated = {a['image_id'] for a in content['annotations']}
    small = [image for image in images if min(image['width'], image['height']) < min_size]
    empty = len(images) - len(annotated) if filter_cfg.get('filter_empty_gt') else 0
    kept = [
        image
        for image in images
        if min(image['width'], image['height']) >= min_size
        and (image['id'] in annotated or not filter_cfg.get('filter_empty_gt'))
    ]
    if not kept:
        raise UserError(
            f'No image of {path} is left to train on: {len(small)} of {len(images)} are smaller '
            f'than {min_size} pixels and {empty} have no annotation. For small images, set '
            'min_size in the filter_cfg of the training data set.'
        )
    if len(kept) < len(images):
        print_log(
            f'{path}: {len(kept)} of {len(images)} images are used; {len(small)} are smaller than '
            f'{min_size} pixels, {empty} have no annotation.',
            logger='current',
        )


def _check_image_files(folder: Path, images: list[dict]) -> None:
    names = [image['file_name'] for image in images]
    # One listing per folder, because asking for each file alone is slow on network drives.
    listings = {
        parent: set(os.listdir(parent)) if parent.is_dir() else set()
        for parent in {(folder / name).parent for name in names}
    }
    missing = [n for n in names if Path(n).name not in listings[(folder / n).parent]]
    if missing:
        raise UserError(
            f'{len(missing)} of {len(names)} images are not in {folder}: {shorten(missing)}. Copy '
            'them there, or remove them from the annotation file.'
        )
    paths = [folder / name for name in names]
    for image, path, header in zip(images, paths, check_images(paths), strict=True):
        size, declared = header.size, (image['width'], image['height'])
        if declared != size:
            raise UserError(
                f'{path} is {size[0]}x{size[1]} pixels, but its annotation file says '
                f'{declared[0]}x{declared[1]}. Correct "width" and "height", and check that the boxes '
                f'were made for this size.{header.hint("the boxes")}'
            )
    print_log(
        f'{folder}: all {len(paths)} image files are there, whole, and of the size that is annotated; their '
        'pixels were not looked at.',
        logger='current',
    )
