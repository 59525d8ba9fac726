"""A small detection and segmentation data set made from pictures that PyPI packages ship.

Handwritten digit scans of scikit-learn (8x8 pixels, ten classes) are drawn at many sizes over
photographs of scikit-image and scikit-learn. Nothing is downloaded.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

DIGITS = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
# 0 is the ADE layout's ignored label, so the background is a class of its own.
SEMANTIC_CLASSES = ('background', *DIGITS)

# No photograph serves both splits, and none shows printed digits.
PHOTOGRAPHS = {
    'train': (
        'astronaut', 'brick', 'camera', 'china', 'coffee', 'gravel', 'moon', 'motorcycle',
        'retina', 'rocket',
    ),
    'val': ('chelsea', 'flower', 'grass', 'hubble_deep_field'),
}  # fmt: skip
ADE_SPLITS = {'train': 'training', 'val': 'validation'}

DIGIT_SIZES = (24, 80)
DIGITS_PER_IMAGE = (5, 9)
GAP = 2
DIMMING = 0.5
MIN_CONTRAST = 90
INK_RANGE = (0.42, 0.58)


def make_demo_data(
    root: str | Path,
    seed: int = 0,
    num_train: int = 800,
    num_val: int = 80,
    image_size: int = 160,
) -> bool:
    """Write the demo data set to ``root`` in the COCO and the ADE layout at once.

    Pictures are square JPEG files of ``image_size`` pixels with 4 to 9 digits, the longer sides of
    which are spread log-uniformly over 24 to 80 pixels (less in pictures under 128 pixels). Every
    digit has a box and a run-length mask, and the box is the bounds of the mask. The semantic maps
    hold 1 for the background and ``d + 2`` for the digit ``d``. Train and val share neither
    photographs nor digit scans; images and annotations name theirs under ``photograph`` and
    ``scan``. The same arguments give the same files.

    The folder appears complete or not at all: it is written beside ``root`` with the suffix
    ``.partial`` and renamed at the end.

    Args:
        root: Folder to make.
        seed: Seed of everything random.
        num_train: Training pictures.
        num_val: Validation pictures.
        image_size: Height and width in pixels, 64 to 1024.

    Returns:
        True if the data set was made, False if ``root`` already holds the one asked for.

    Raises:
        ValueError: An argument is out of range.
        FileExistsError: ``root`` holds something else.
        ImportError: scikit-learn, scikit-image or pycocotools is missing.
    """
    root = Path(root)
    settings = dict(seed=seed, num_train=num_train, num_val=num_val, image_size=image_size)
    _check_settings(**settings)
    if root.exists() and (root.is_file() or any(root.iterdir())):
        _check_existing(root, settings)
        return False

    sources = _load_sources()
    partial = root.with_name(root.name + '.partial')
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        _write_data(partial, *sources, settings)
        partial.rename(root)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return True


def _write_data(root: Path, photographs: dict, scans: list, settings: dict[str, int]) -> None:
    seed = settings['seed']
    order = np.random.default_rng(seed).permutation(len(scans))
    first_val = len(scans) * 4 // 5
    for split, ids in (('train', order[:first_val]), ('val', order[first_val:])):
        own = {name: photographs[name] for name in PHOTOGRAPHS[split]}
        pictures = _compose(own, scans, ids, settings[f'num_{split}'], settings['image_size'], seed)
        _write_split(root, split, pictures, settings)
    (root / 'classes.txt').write_text('\n'.join(SEMANTIC_CLASSES) + '\n')


def _check_settings(seed: int, num_train: int, num_val: int, image_size: int) -> None:
    if seed < 0:
        raise ValueError(f'seed is {seed}; it must be 0 or more')
    for name, number in (('num_train', num_train), ('num_val', num_val)):
        if not 1 <= number <= 100_000:
            raise ValueError(f'{name} is {number}; it must be 1 to 100000 pictures')
    if not 64 <= image_size <= 1024:
        raise ValueError(f'image_size is {image_size}; it must be 64 to 1024 pixels')


def _check_existing(root: Path, settings: dict) -> None:
    """Raise unless ``root`` holds the demo data set of these settings."""
    try:
        found = json.loads((root / 'annotations' / 'instances_val2017.json').read_text())['info']
        found = {name: found[name] for name in settings}
    except (OSError, ValueError, KeyError, TypeError):
        raise FileExistsError(f'{root} exists and is not a demo data set; choose another folder') from None
    if found != settings:
        listed = ', '.join(f'{name} {number}' for name, number in found.items())
        raise FileExistsError(
            f'{root} holds a demo data set of other settings ({listed}); remove it or choose another folder'
        )


def _load_sources() -> tuple[dict[str, np.ndarray], list[tuple[int, np.ndarray]]]:
    """Photographs (height, width, 3), RGB uint8, by name, and (digit, brush) for each scan."""
    try:
        # Needed later only, but missed before any picture is made.
        import pycocotools.mask  # noqa: F401
        from skimage import data
        from sklearn.datasets import load_digits, load_sample_image
    except ImportError as error:
        raise ImportError(
            'the demo data set is made from pictures that scikit-learn and scikit-image ship and masks that '
            f'pycocotools packs, and {error.name} is missing; install all three with: pip install '
            'scikit-learn scikit-image pycocotools'
        ) from error
    photographs = {
        'china': load_sample_image('china.jpg'),
        'flower': load_sample_image('flower.jpg'),
        'motorcycle': data.stereo_motorcycle()[0],
    }
    for name in PHOTOGRAPHS['train'] + PHOTOGRAPHS['val']:
        if name not in photographs:
            photographs[name] = getattr(data, name)()
    for name, photograph in photographs.items():
        if photograph.ndim == 2:
            photographs[name] = np.repeat(photograph[..., None], 3, axis=2)
    digits = load_digits()
    scans = [
        (int(digit), _brush(scan / 16)) for digit, scan in zip(digits.target, digits.images, strict=True)
    ]
    return photographs, scans


def _brush(scan: np.ndarray) -> np.ndarray:
    """Opacity in 0..1 of a smoothly enlarged 8x8 scan (ink in 0..1), cropped to what is visible."""
    ink = cv2.resize(np.pad(scan, 1), None, fx=16, fy=16, interpolation=cv2.INTER_CUBIC)
    faint, full = INK_RANGE
    opacity = np.clip((ink - faint) / (full - faint), 0, 1).astype(np.float32)
    left, top, width, height = cv2.boundingRect((opacity > 0).astype(np.uint8))
    return opacity[top : top + height, left : left + width]


def _compose(
    photographs: dict[str, np.ndarray],
    scans: list[tuple[int, np.ndarray]],
    ids: np.ndarray,
    number: int,
    image_size: int,
    seed: int,
) -> Iterator[tuple[str, np.ndarray, list[tuple[int, int, np.ndarray]]]]:
    """Yield (photograph, picture, [(scan id, digit, mask)]) for each of ``number`` pictures."""
    names = list(photographs)
    rng = np.random.default_rng([seed, len(names)])
    smallest, largest = DIGIT_SIZES[0], min(DIGIT_SIZES[1], image_size * 5 // 8)
    position = 0
    for index in range(number):
        name = names[index % len(names)]
        picture = _background(photographs[name], image_size, rng)
        count = rng.integers(DIGITS_PER_IMAGE[0], DIGITS_PER_IMAGE[1] + 1)
        sizes = np.exp(rng.uniform(np.log(smallest), np.log(largest), count))
        taken = np.zeros((image_size, image_size), bool)
        objects = []
        # The largest first: small digits find room between them, not the other way round.
        for size in np.sort(sizes)[::-1]:
            scan_id = int(ids[position % len(ids)])
            digit, brush = scans[scan_id]
            mask = _place(picture, taken, brush, size, rng)
            if mask is not None:
                objects.append((scan_id, digit, mask))
                position += 1
        yield name, picture, objects


def _background(photograph: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random square part of a photograph, dimmed, at least half of its height, as (size, size, 3)."""
    shorter = min(photograph.shape[:2])
    side = int(rng.integers(shorter // 2, shorter + 1))
    top, left = (int(rng.integers(0, length - side + 1)) for length in photograph.shape[:2])
    part = photograph[top : top + side, left : left + side]
    part = cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA)
    return np.round(part * DIMMING).astype(np.uint8)


def _place(
    picture: np.ndarray,
    taken: np.ndarray,
    brush: np.ndarray,
    size: float,
    rng: np.random.Generator,
) -> np.ndarray | None:
    """Draw a digit where nothing is ``taken`` yet; return its mask, or None if there is no room."""
    scale = size / max(brush.shape)
    height, width = (max(1, round(length * scale)) for length in brush.shape)
    opacity = cv2.resize(brush, (width, height), interpolation=cv2.INTER_AREA)
    for _ in range(50):
        top = int(rng.integers(0, picture.shape[0] - height + 1))
        left = int(rng.integers(0, picture.shape[1] - width + 1))
        box = (slice(top, top + height), slice(left, left + width))
        if taken[box].any():
            continue
        under = picture[box]
        colour = _contrasting_colour(under, rng)
        picture[box] = np.round(under + opacity[..., None] * (colour - under)).astype(np.uint8)
        taken[max(0, top - GAP) : top + height + GAP, max(0, left - GAP) : left + width + GAP] = 1
        mask = np.zeros(taken.shape, bool)
        mask[box] = opacity >= 0.5
        return mask
    return None


def _contrasting_colour(under: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random RGB colour that is clearly brighter than the pixels ``under`` it."""
    weights = np.array([0.299, 0.587, 0.114])
    behind = float((under @ weights).mean())
    while True:
        colour = rng.uniform(0, 255, 3)
        if colour @ weights - behind >= MIN_CONTRAST:
            return colour


def _write_split(root: Path, split: str, pictures: Iterator, settings: dict) -> None:
    """Write one split: pictures, label maps and the COCO annotation file."""
    image_dir, map_dir = root / f'{split}2017', root / 'annotations' / ADE_SPLITS[split]
    image_dir.mkdir()
    map_dir.mkdir(parents=True)
    images, annotations = [], []
    for image_id, (photograph, picture, objects) in enumerate(pictures, start=1):
        height, width = picture.shape[:2]
        label_map = np.ones((height, width), np.uint8)
        for scan, digit, mask in objects:
            label_map[mask] = digit + 2
            annotations.append(
                dict(id=len(annotations) + 1, image_id=image_id, **_annotation(digit, mask, scan))
            )
        name = f'{image_id:06d}'
        _write_image(image_dir / f'{name}.jpg', picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        _write_image(map_dir / f'{name}.png', label_map, [])
        images.append(
            dict(
                id=image_id,
                file_name=f'{name}.jpg',
                height=height,
                width=width,
                photograph=photograph,
            )
        )
    _link(root / 'images' / ADE_SPLITS[split], image_dir)
    content = dict(
        info=dict(description='Handwritten digits over photographs', **settings),
        images=images,
        annotations=annotations,
        categories=[dict(id=i, name=name) for i, name in enumerate(DIGITS, start=1)],
    )
    (root / 'annotations' / f'instances_{split}2017.json').write_text(json.dumps(content))


def _annotation(digit: int, mask: np.ndarray, scan: int) -> dict:
    # Segmentation alone does without it, but for this data set.
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return dict(
        category_id=digit + 1,
        bbox=[int(x) for x in cv2.boundingRect(mask.astype(np.uint8))],
        area=int(mask.sum()),
        iscrowd=0,
        segmentation=dict(size=rle['size'], counts=rle['counts'].decode()),
        scan=scan,
    )


def _write_image(path: Path, image: np.ndarray, options: list[int]) -> None:
    written, data = cv2.imencode(path.suffix, image, options)
    if not written:
        raise OSError(f'{path} could not be encoded')
    path.write_bytes(data)


def _link(link: Path, folder: Path) -> None:
    """Make ``link`` show the files of ``folder``, which lies one level above the link's folder."""
    link.parent.mkdir(exist_ok=True)
    try:
        link.symlink_to(Path('..') / folder.name, target_is_directory=True)
    except OSError:  # a file system, or a Windows account, without symbolic links
        shutil.copytree(folder, link)
