"""Images that a user points at: found, checked whole, and read as the models were trained on them."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mmcv
import numpy as np
from PIL import Image

from ..datasets.ade_layout import IMAGE_SUFFIXES
from ..datasets.layout import list_files
from ..errors import UserError


class ImageError(UserError):
    """A file that cannot be used as an image."""


@dataclass(frozen=True)
class ImageFile:
    """An image to predict on.

    Attributes:
        path: Where it lies.
        name: Name of its results, without suffix; no two images of a run share it.
    """

    path: Path
    name: str


def find_images(inputs: Sequence[str]) -> tuple[list[ImageFile], list[str]]:
    """Expand files, folders (searched to the bottom) and glob patterns.

    Args:
        inputs: What the user gave.

    Returns:
        The images, each once, in the order given (folders sorted), and one message for each input
        that leads to no image.
    """
    found: dict[Path, str] = {}
    problems = []
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            try:
                files = {path / name: name for name in list_files(path, IMAGE_SUFFIXES)}
                problem = f'{given}: no image in this folder (files that end in {", ".join(IMAGE_SUFFIXES)})'
            except UserError as error:
                files, problem = {}, f'{given}: {error}'
        elif path.is_file():
            files, problem = {path: path.name}, ''
        elif glob.has_magic(given):
            matches = map(Path, sorted(glob.glob(given, recursive=True)))
            files = {file: file.name for file in matches if file.is_file()}
            problem = f'{given}: no file matches this pattern'
        else:
            files, problem = {}, f'{given}: no such file or folder'
        if not files:
            problems.append(problem)
        for file, name in files.items():
            found.setdefault(file, name)
    return _with_unique_names(found), problems


def _with_unique_names(found: dict[Path, str]) -> list[ImageFile]:
    taken: set[str] = set()
    images = []
    for path, relative in found.items():
        stem = str(Path(relative).with_suffix(''))
        name, number = stem, 1
        while name in taken:
            number += 1
            name = f'{stem}-{number}'
        taken.add(name)
        images.append(ImageFile(path, name))
    return images


def read_image(path: Path, flag: str = 'color', backend: str | None = None) -> np.ndarray:
    """Read an image as the data pipelines do: by default, all kinds become 8-bit colour.

    Args:
        path: The file.
        flag: ``color_type`` of LoadImageFromFile.
        backend: Its ``imdecode_backend``.

    Returns:
        (height, width, 3) uint8, BGR, or what another flag gives.

    Raises:
        ImageError: If the file is missing, empty, cut short, no image, or one of a single pixel.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ImageError(f'{path}: {error.strerror or error}') from error
    if not content:
        raise ImageError(f'{path}: the file is empty')
    try:
        # OpenCV fills what is missing of a truncated file with grey, and says nothing.
        with Image.open(path) as file:
            file.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f'{path}: cannot be read as an image ({error})') from error
    try:
        image = mmcv.imfrombytes(content, flag=flag, backend=backend)
    except Exception as error:  # of any of the libraries that decode for MMCV
        raise ImageError(f'{path}: the decoder {backend!r} of the config fails on it ({error!r})') from error
    if image is None:
        raise ImageError(f'{path}: MMCV cannot read this kind of image; convert it to PNG or JPEG')
    if image.shape[:2] == (1, 1):
        raise ImageError(f'{path}: there is nothing to see on a single pixel')
    return image
