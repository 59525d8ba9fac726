"""What the checks of the two data set layouts share."""

import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import UserError

# Each waits for a disk, or a network, most of the time.
THREADS = 8
# From this brightness on, a 16-bit image uses a sixteenth of its scale or more.
BRIGHT_16_BIT = 4096


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
    """Sorted paths below ``folder``, relative to it, of files with one of the suffixes, in any case."""
    return sorted(
        os.path.relpath(os.path.join(parent, name), folder)
        for parent, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(suffixes) and not name.startswith('.')
    )


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


def check_images(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """Check that files are whole images that the data pipelines can read.

    The headers of all are read, and the ends of JPEG and PNG files; the pixels only where the end
    looks wrong or the format marks none. Grey, palette, alpha, CMYK and 16-bit images are read as
    8-bit colour later; 16-bit ones that use so little of their scale that they would become black
    are refused.

    Args:
        paths: The files.

    Returns:
        Width and height of each in pixels, as its header declares them.

    Raises:
        UserError: If one is missing, no image, cut short or of 32 bits.
    """
    headers = in_threads(_read_header, paths)
    bad = [f'{path} ({found})' for path, found in zip(paths, headers, strict=True) if isinstance(found, str)]
    if bad:
        raise UserError(
            f'{len(bad)} of {len(paths)} images cannot be read as an image: {shorten(bad)}. Replace these '
            'files or take them out of the data set.'
        )
    deep = [path for path, (_, mode) in zip(paths, headers, strict=True) if mode.startswith('I;16')]
    step = max(1, len(deep) // 32)
    brightest = max(in_threads(_brightest, deep[::step]), default=BRIGHT_16_BIT)
    if brightest < BRIGHT_16_BIT:
        raise UserError(
            f'{len(deep)} of {len(paths)} images have 16 bits, but none of {len(deep[::step])} that were '
            f'looked at is brighter than {brightest} of 65535, so all would be black: {shorten(deep)}. '
            'Scale them to 0 to 65535, or to 0 to 255 and save them with 8 bits.'
        )
    return [size for size, _ in headers]


def _read_header(path: Path) -> tuple[tuple[int, int], str] | str:
    """Size and mode of an image file, or what is wrong with it."""
    try:
        with Image.open(path) as image:
            if not _ends_well(path, image.format):
                image.load()
            # Older versions of Pillow call a PNG of 16 bits so.
            if image.mode == 'F' or (image.mode == 'I' and image.format != 'PNG'):
                return 'its pixels have 32 bits; convert it to 8 or 16 bits'
            return image.size, image.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return str(error)


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
