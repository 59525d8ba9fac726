"""What the checks of the two data set layouts share."""

from collections import Counter
from collections.abc import Hashable, Iterable
from pathlib import Path

from PIL import Image

from ..errors import UserError

# Opening every image of a large data set would take minutes; a systematic mistake shows in a few.
IMAGES_SAMPLED = 32


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


def shorten(items: Iterable[object], limit: int = 8) -> str:
    """Join the first few items with commas and say how many are left out."""
    items = list(items)
    more = f' and {len(items) - limit} more' if len(items) > limit else ''
    return ', '.join(map(str, items[:limit])) + more


def duplicates(values: Iterable[Hashable]) -> list[Hashable]:
    """Values that occur more than once, in order of first appearance."""
    return [value for value, count in Counter(values).items() if count > 1]


def sample(items: list, limit: int = IMAGES_SAMPLED) -> list:
    """At most ``limit`` items, evenly spread."""
    step = max(1, len(items) // limit)
    return items[::step][:limit]


def image_size(path: Path) -> tuple[int, int]:
    """Width and height that an image file declares, in pixels.

    Raises:
        UserError: If the file is no image.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except OSError as error:
        raise UserError(
            f'{path} cannot be read as an image ({error}). Replace the file or take it out of the data set.'
        ) from error
