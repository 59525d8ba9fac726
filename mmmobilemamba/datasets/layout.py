"""What the checks of the two data set layouts share."""

import functools
import io
import os
import struct
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import mmcv
from mmengine.logging import print_log
from PIL import ExifTags, Image

from ..errors import UserError

# Each waits for a disk, or a network, most of the time.
THREADS = 8
# From this brightness on, a 16-bit image uses a sixteenth of its scale or more.
BRIGHT_16_BIT = 4096
UPRIGHT, QUARTER_TURN = 1, 6


class Header(NamedTuple):
    """What is known of an image without its pixels.

    Attributes:
        size: Width and height in pixels; of the image as it will be read, in what ``check_images`` returns.
        mode: Pillow's name of the pixels' type.
        format: Pillow's name of the file's format.
        orientation: As the EXIF standard numbers them; 1 is upright, from 5 on the sides are swapped.
    """

    size: tuple[int, int]
    mode: str
    format: str
    orientation: int

    def hint(self, annotations: str) -> str:
        """What to do about ``annotations`` of another size, if reading turns the image."""
        if self.orientation == UPRIGHT:
            return ''
        return (
            f' Reading turns this image as its EXIF orientation ({self.orientation}) says: make '
            f'{annotations} for the turned image, or remove that tag from the file.'
        )


def check_layout(root: Path, files: Iterable[str], folders: Iterable[str], layout: str) -> None:
    """Check that a data set folder holds what its layout asks for.

    Args:
        root: The data set.
        files: Paths of files under ``root`` that must be there.
        folders: Paths of folders under ``root`` that must be there.
        layout: The whole layout, one entry a line, for the error.

    Raises:
        UserError: If ``root`` or anything in it is missing.
    """
    layout = '\n'.join(f'  {line}' for line in layout.strip().splitlines())
    if not root.is_dir():
        raise UserError(
            f'The data root {str(root)!r} is not a folder. Give the folder of a data set that '
            f'looks like this:\n{layout}'
        )
    missing = [name for name in files if not (root / name).is_file()]
    missing += [f'{name}/' for name in folders if not (root / name).is_dir()]
    if missing:
        found = sorted(p.name + '/' * p.is_dir() for p in root.iterdir())
        raise UserError(
            f'The data root {str(root)!r} lacks {", ".join(missing)}. It should look like this:\n'
            f'{layout}\nbut it holds: {shorten(found) or "nothing"}.'
        )


def list_files(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Sorted paths below ``folder``, relative to it, of files with one of the suffixes, in any case.

    Links to folders are followed, as MMEngine follows them. Hidden files are passed over, and others with
    a line in the log.

    Raises:
        UserError: If a link leads to a folder that it lies in, so that there is no end.
    """
    found, others = [], []
    for parent, folders, names in os.walk(folder, followlinks=True):
        for link in filter(os.path.islink, (os.path.join(parent, name) for name in folders)):
            if Path(parent).resolve().is_relative_to(Path(link).resolve()):
                raise UserError(f'{link} is a link to a folder that it lies in itself. Remove it.')
        for name in names:
            if not name.startswith('.'):
                fits = name.lower().endswith(suffixes)
                (found if fits else others).append(os.path.relpath(os.path.join(parent, name), folder))
    if found and others:
        print_log(
            f'{folder}: {len(others)} files that do not end in {", ".join(suffixes)} are passed over: '
            f'{shorten(sorted(others), 3)}.',
            logger='current',
        )
    return sorted(found)


def shorten(items: Iterable[object], limit: int = 8) -> str:
    """Join the first few items with commas and say how many are left out."""
    items = list(items)
    more = f' and {len(items) - limit} more' if len(items) > limit else ''
    return ', '.join(map(str, items[:limit])) + more


def duplicates(values: Iterable[Hashable]) -> list[Hashable]:
    """Values that occur more than once, in order of first appearance."""
    return [value for value, count in Counter(values).items() if count > 1]


def in_threads(function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """The results of a function that reads files, in order; the first error is raised."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(function, items))


def check_images(paths: Sequence[Path]) -> list[Header]:
    """Check that files are whole images that the data pipelines can read.

    The headers of all are read, and the ends of JPEG and PNG files; the pixels only where the end
    looks wrong or the format marks none, and of one image of each format. Grey, palette, alpha, CMYK
    and 16-bit images are read as 8-bit colour later; 16-bit ones that use so little of their scale
    that they would become black are refused. Images that reading turns are counted in the log.

    Args:
        paths: The files.

    Returns:
        The header of each, with the size that the image will have when it is read.

    Raises:
        UserError: If one is missing, no image, cut short, of 32 bits or of a format that OpenCV lacks.
    """
    found = in_threads(_read_header, paths)
    bad = [f'{path} ({x})' for path, x in zip(paths, found, strict=True) if isinstance(x, str)]
    if bad:
        raise UserError(
            f'{len(bad)} of {len(paths)} images cannot be read as an image: {shorten(bad)}. Replace these '
            'files or take them out of the data set.'
        )
    _check_formats(paths, found)
    deep = [path for path, header in zip(paths, found, strict=True) if header.mode.startswith('I;16')]
    step = max(1, len(deep) // 32)
    brightest = max(in_threads(_brightest, deep[::step]), default=BRIGHT_16_BIT)
    if brightest < BRIGHT_16_BIT:
        raise UserError(
            f'{len(deep)} of {len(paths)} images have 16 bits, but none of {len(deep[::step])} that were '
            f'looked at is brighter than {brightest} of 65535, so all would be black: {shorten(deep)}. '
            'Scale them to 0 to 65535, or to 0 to 255 and save them with 8 bits.'
        )
    headers = [_as_read(header) for header in found]
    turned = [path for path, header in zip(paths, headers, strict=True) if header.orientation != UPRIGHT]
    if turned:
        print_log(
            f'{len(turned)} of {len(paths)} images are turned or mirrored when they are read, as their EXIF '
            f'orientation says: {shorten(turned, 3)}. Boxes and maps must be made for the turned images.',
            logger='current',
        )
    return headers


def _check_formats(paths: Sequence[Path], headers: Sequence[Header]) -> None:
    """Refuse formats that Pillow reads but OpenCV, which reads the images later, does not."""
    of_format: dict[str, list[Path]] = {}
    for path, header in zip(paths, headers, strict=True):
        of_format.setdefault(header.format, []).append(path)
    for name, files in of_format.items():
        if mmcv.imfrombytes(files[0].read_bytes()) is None:
            raise UserError(
                f'{len(files)} of {len(paths)} images have the format {name}: {shorten(files)}. OpenCV '
                'cannot read this kind of image; convert it to PNG or JPEG.'
            )


def _read_header(path: Path) -> Header | str:
    """What the header of an image file declares, or what is wrong with the file."""
    try:
        with Image.open(path) as image:
            # Before a TIFF image is loaded, which turns it.
            header = Header(image.size, image.mode, image.format, _orientation(image))
            if not _ends_well(path, image.format):
                image.load()
            # Older versions of Pillow call a PNG of 16 bits so.
            if image.mode == 'F' or (image.mode == 'I' and image.format != 'PNG'):
                return 'its pixels have 32 bits; convert it to 8 or 16 bits'
            return header
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return str(error)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation by which OpenCV turns an image.

    Pillow's ``getexif`` is not asked, because it takes the orientation from XMP as well, and decodes PNG
    files to find it.
    """
    if image.format == 'TIFF':
        value = image.tag_v2.get(ExifTags.Base.Orientation)
    else:
        exif = Image.Exif()
        try:
            exif.load(image.info.get('exif', b''))
        except (SyntaxError, struct.error):  # spoiled EXIF data, which turn nothing
            return UPRIGHT
        value = exif.get(ExifTags.Base.Orientation)
    return value if value in range(1, 9) else UPRIGHT


def _as_read(header: Header) -> Header:
    if header.orientation == UPRIGHT:
        return header
    turns, swaps = _turning(header.format)
    if not turns:
        return header._replace(orientation=UPRIGHT)
    return header._replace(size=header.size[::-1]) if swaps and header.orientation >= 5 else header


@functools.cache
def _turning(file_format: str) -> tuple[bool, bool]:
    """Whether reading turns images of a format, and whether that swaps the sides that Pillow declares.

    It is tried, because releases of OpenCV and Pillow differ: WebP images, for example, are turned by
    OpenCV 5.0 but not by 4.12.
    """
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = QUARTER_TURN
    content = io.BytesIO()
    Image.new('RGB', (16, 8)).save(content, file_format, exif=exif)
    with Image.open(content) as image:
        declared = image.size
    height, width = mmcv.imfrombytes(content.getvalue()).shape[:2]
    return (width, height) == (8, 16), (width, height) != declared


def _ends_well(path: Path, file_format: str | None) -> bool:
    """Whether the end of a file says that nothing is missing; many formats do not say it."""
    if file_format not in ('JPEG', 'PNG'):
        return False
    with path.open('rb') as file:
        file.seek(-min(32, path.stat().st_size), os.SEEK_END)
        end = file.read().rstrip(b'\0')
    return end.endswith(b'\xff\xd9') if file_format == 'JPEG' else b'IEND' in end


def _brightest(path: Path) -> int:
    with Image.open(path) as image:
        return image.getextrema()[1]
