"""Reads a split of a data set in the ADE layout and refuses what would go wrong unnoticed."""

from dataclasses import dataclass
from pathlib import Path

from mmengine.logging import print_log
from PIL import Image

from ..errors import UserError
from .layout import Header, check_images, check_layout, duplicates, in_threads, list_files, shorten

ADE_LAYOUT = """
classes.txt              one class name per line; line i names the value i of the maps
images/training/         the training images
images/validation/       the validation images
annotations/training/    a label map (PNG, one channel) for each image; 0 is ignored
annotations/validation/
"""
IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp')
MAP_SUFFIX = '.png'
# A map's values are bytes, 0 and 255 are ignored.
MAX_CLASSES = 254


@dataclass(frozen=True)
class AdeSplit:
    """Where a split lies, relative to the data root, and what it holds (None: not looked at)."""

    image_folder: str
    map_folder: str
    image_suffix: str
    num_images: int | None

    @classmethod
    def unseen(cls, root: Path, split: str, image_suffix: str) -> 'AdeSplit':
        """A split that is not to be checked, and may be missing: its images then end as given."""
        images = Path('images') / split
        found = list_files(root / images, IMAGE_SUFFIXES)
        suffix = Path(found[0]).suffix if found else image_suffix
        return cls(str(images), str(Path('annotations') / split), suffix, None)


def read_classes(root: Path) -> tuple[str, ...]:
    """Read the class names of a data set from its ``classes.txt``.

    Raises:
        UserError: If the file is missing, or is not a list of 2 to 254 different names.
    """
    check_layout(root, ['classes.txt'], [], ADE_LAYOUT)
    path = root / 'classes.txt'
    try:
        names = [line.strip() for line in path.read_text(encoding='utf-8-sig').splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f'{path} is not a text file in UTF-8 ({error}).') from error
    blank = [i for i, name in enumerate(names, start=1) if not name]
    if blank:
        raise UserError(
            f'{path} has blank lines ({shorten(blank)}). Line i names the value i of the label '
            'maps, so every line needs a name.'
        )
    if repeated := duplicates(names):
        raise UserError(f'{path} names {shorten(repeated)} more than once. Use different names.')
    if not 2 <= len(names) <= MAX_CLASSES:
        raise UserError(
            f'{path} names {len(names)} classes; 2 to {MAX_CLASSES} are possible. Value 0 of the '
            'maps is ignored, so a background to tell objects from is a class as well.'
        )
    return tuple(names)


def read_ade_split(root: Path, split: str, num_classes: int) -> AdeSplit:
    """Find and check the images and label maps of one split.

    Args:
        root: The data set.
        split: 'training' or 'validation'.
        num_classes: Number of classes: the largest value allowed in a map, beside 255 (ignored).

    Raises:
        UserError: If images or maps are missing, or one of them is not usable, or they do not fit together.
    """
    images, maps = Path('images') / split, Path('annotations') / split
    check_layout(root, [], [str(images), str(maps)], ADE_LAYOUT)
    names = list_files(root / images, IMAGE_SUFFIXES)
    if not names:
        raise UserError(
            f'{root / images} holds no image; expected are files that end in {", ".join(IMAGE_SUFFIXES)}.'
        )
    suffixes = sorted({Path(name).suffix for name in names})
    if len(suffixes) > 1:
        raise UserError(
            f'The images in {root / images} end in {", ".join(suffixes)}. MMSegmentation reads one '
            'kind per folder; convert or rename them to one.'
        )
    stems = [name.removesuffix(suffixes[0]) for name in names]
    found = {name.removesuffix(MAP_SUFFIX) for name in list_files(root / maps, (MAP_SUFFIX,))}
    missing = [stem + MAP_SUFFIX for stem in stems if stem not in found]
    if missing:
        raise UserError(
            f'{len(missing)} of {len(stems)} images in {root / images} have no label map of the '
            f'same name in {root / maps}: {shorten(missing)}. Add the maps or remove the images.'
        )
    pictures = [root / images / (stem + suffixes[0]) for stem in stems]
    headers = check_images(pictures)
    files = [root / maps / (stem + MAP_SUFFIX) for stem in stems]
    found = in_threads(
        lambda x: _check_map(*x, num_classes=num_classes), zip(files, pictures, headers, strict=True)
    )
    _check_values(root / maps, set().union(*found), num_classes)
    print_log(
        f'{root}: all {len(stems)} {split} images are whole and have a label map of their size with '
        'values that classes.txt names; the pixels of the images were not looked at.',
        logger='current',
    )
    return AdeSplit(str(images), str(maps), suffixes[0], len(names))


def _check_map(path: Path, image: Path, header: Header, num_classes: int) -> set[int]:
    """Refuse a label map that would go wrong; the values in it."""
    try:
        with Image.open(path) as file:
            size, mode, kind = file.size, file.mode, file.format
            counts = file.histogram() if mode in ('L', 'P') else []
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f'The label map {path} cannot be read ({error}). Write or copy it again.') from error
    if kind != 'PNG':
        raise UserError(
            f'The label map {path} is a {kind} file, whatever its name says. Its values may have been '
            'changed when it was written: make it anew as PNG.'
        )
    if mode not in ('L', 'P'):
        raise UserError(
            f'The label map {path} has the mode {mode}; it must have one 8-bit channel (mode L or P) whose '
            'values are the classes. Colours are no class numbers: write the number of its class for each '
            'colour.'
        )
    if size != header.size:
        raise UserError(
            f'The label map {path} is {size[0]}x{size[1]} pixels, its image {image} '
            f'{header.size[0]}x{header.size[1]}. They must be of one size.{header.hint("the map")}'
        )
    unknown = [value for value, count in enumerate(counts) if count and num_classes < value < 255]
    if unknown:
        raise UserError(
            f'The label map {path} holds {shorten(unknown)}, but classes.txt names only '
            f'{num_classes} classes. Allowed are 1 to {num_classes}, and 0 and 255 for pixels '
            'without a class. Add the missing names, or correct the map.'
        )
    return {value for value, count in enumerate(counts) if count}


def _check_values(folder: Path, values: set[int], num_classes: int) -> None:
    absent = sorted(set(range(1, num_classes + 1)) - values)
    if len(absent) == num_classes:
        raise UserError(
            f'The label maps in {folder} hold {shorten(sorted(values))} alone, which are pixels without a '
            f'class. Line i of classes.txt names the value i: write 1 to {num_classes} into the maps, for '
            'example 1 for the background and 2 for the object.'
        )
    if absent:
        print_log(
            f'{folder}: no label map holds {shorten(absent)}, so these lines of classes.txt name nothing. '
            'Values begin at 1.',
            logger='current',
        )
