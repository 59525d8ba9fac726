"""Predictions on images that belong to no data set."""

import copy
from collections.abc import Callable, Iterable, Iterator

import mmcv
import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.dataset import pseudo_collate
from mmengine.structures import BaseDataElement
from torch import nn

from ..engine.config_nodes import innermost_test_dataset, type_name
from ..errors import UserError
from .images import ImageError, ImageFile, read_image

# Sides of which one may vanish where images are resized.
THIN = 100
Prediction = tuple[ImageFile, np.ndarray, BaseDataElement]


def predict(
    model: nn.Module,
    images: Iterable[ImageFile],
    batch_size: int = 1,
    on_bad_image: Callable[[ImageFile, ImageError], None] | None = None,
) -> Iterator[Prediction]:
    """Predict on image files with the test pipeline of the model's config.

    Only images that the pipeline brings to the same size share a batch, so that no result depends
    on padding for another image.

    Args:
        model: From :func:`load_model`.
        images: The files.
        batch_size: How many images to predict at once.
        on_bad_image: Called with each file that cannot be read or prepared, which is then left out. If
            None, the error is raised.

    Yields:
        The file, the image (height, width, 3; BGR) and the data sample with the predictions.

    Raises:
        ImageError: If a file cannot be read or prepared, and there is no ``on_bad_image``.
    """
    reading, pipeline = _test_pipeline(model)
    batch: list[tuple[ImageFile, np.ndarray, dict]] = []
    for file in images:
        try:
            image = read_image(file.path, **reading)
            data = _prepare(pipeline, file, image)
        except ImageError as error:
            if on_bad_image is None:
                raise
            on_bad_image(file, error)
            continue
        if batch and (len(batch) == batch_size or data['inputs'].shape != batch[0][2]['inputs'].shape):
            yield from _predict_batch(model, batch)
            batch = []
        batch.append((file, image if image.ndim == 3 else mmcv.gray2bgr(image), data))
    if batch:
        yield from _predict_batch(model, batch)


def _prepare(pipeline: Callable[[dict], dict], file: ImageFile, image: np.ndarray) -> dict:
    try:
        return pipeline(dict(img=image, img_id=0))
    except Exception as error:  # of any library; one image is no reason to lose the others
        height, width = image.shape[:2]
        thin = max(height, width) > THIN * min(height, width)
        raise ImageError(
            f'{file.path}: the test pipeline fails on this image of {width}x{height} pixels ({error!r})'
            + ('; crop it, it is very thin' if thin else '')
        ) from error


def _test_pipeline(model: nn.Module) -> tuple[dict[str, str], Callable[[dict], dict]]:
    """How images are read, and what is done with them then."""
    first, *steps = innermost_test_dataset(model.cfg).pipeline
    if 'LoadImageFromFile' not in type_name(first):
        raise UserError(
            f'The test pipeline begins with {type_name(first)!r}, which may read images in a way of its own. '
            'Allowed is LoadImageFromFile: change the config, or use tools/test.py.'
        )
    reading = dict(flag=first.get('color_type', 'color'), backend=first.get('imdecode_backend', 'cv2'))
    loading = {**first, 'type': f'{model.cfg.default_scope}.LoadImageFromNDArray'}
    kept = (copy.deepcopy(s) for s in steps if 'Annotations' not in type_name(s))
    return reading, Compose([loading, *kept])


@torch.no_grad()
def _predict_batch(model: nn.Module, batch: list[tuple[ImageFile, np.ndarray, dict]]) -> list[Prediction]:
    samples = model.test_step(pseudo_collate([data for _, _, data in batch]))
    return [(file, image, sample.cpu()) for (file, image, _), sample in zip(batch, samples, strict=True)]
