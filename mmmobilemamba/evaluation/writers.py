"""Predictions as files: drawn pictures with a COCO JSON (detection) or label maps (segmentation)."""

import json
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.structures import BaseDataElement
from PIL import Image
from torch import nn

from .images import ImageFile

# Category ids that the 80 classes of COCO leave out between 1 and 90.
COCO_GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
PREDICTIONS = 'predictions.json'


class DetectionWriter:
    """Writes ``drawn/`` and ``predictions.json``, a COCO data set of what was detected.

    Its ``annotations`` also have a ``score``, so that the list is what ``COCO.loadRes`` takes.

    Args:
        model: From :func:`load_model`.
        out_dir: Folder to write to.
        score_thr: Detections below are neither drawn nor written.
        category_ids: Id of each class; by default those of COCO for its 80 classes, else 1, 2, ….
    """

    def __init__(
        self, model: nn.Module, out_dir: Path, score_thr: float, category_ids: list[int] | None = None
    ) -> None:
        from mmdet.visualization import DetLocalVisualizer

        self.out_dir, self.score_thr = out_dir, score_thr
        self.visualizer = DetLocalVisualizer()
        self.visualizer.dataset_meta = model.dataset_meta
        classes = model.dataset_meta['classes']
        self.category_ids = category_ids or default_category_ids(classes)
        self.content: dict[str, list[dict[str, Any]]] = dict(
            images=[],
            annotations=[],
            categories=[dict(id=i, name=name) for i, name in zip(self.category_ids, classes, strict=True)],
        )

    def add(self, file: ImageFile, image: np.ndarray, sample: BaseDataElement) -> None:
        """Draw and keep the predictions of one image."""
        drawn = f'drawn/{file.name}.jpg'
        instances = sample.pred_instances
        sample.pred_instances = instances = instances[instances.scores >= self.score_thr]
        image_id = len(self.content['images']) + 1
        height, width = image.shape[:2]
        self.content['images'].append(
            dict(id=image_id, file_name=str(file.path), width=width, height=height, drawn=drawn)
        )
        boxes, labels = instances.bboxes.tolist(), instances.labels.tolist()
        for i, (x1, y1, x2, y2) in enumerate(boxes):
            annotation = dict(
                id=len(self.content['annotations']) + 1,
                image_id=image_id,
                category_id=self.category_ids[labels[i]],
                bbox=[round(v, 2) for v in (x1, y1, x2 - x1, y2 - y1)],
                score=round(instances.scores[i].item(), 5),
                area=round((x2 - x1) * (y2 - y1), 2),
                iscrowd=0,
            )
            if 'masks' in instances:
                annotation |= _encode_mask(instances.masks[i].numpy())
            self.content['annotations'].append(annotation)
        # The surest last, on top of the others.
        sample.pred_instances = instances[instances.scores.argsort()]
        _draw(self.visualizer, image, sample, self.out_dir / drawn, pred_score_thr=self.score_thr)

    def close(self) -> str:
        """Write the JSON, and say what was written."""
        _write_json(self.out_dir / PREDICTIONS, self.content)
        count = len(self.content['annotations'])
        return f'{count} objects in {self.out_dir / PREDICTIONS}, pictures in {self.out_dir / "drawn"}/'


class SegmentationWriter:
    """Writes ``maps/`` (PNG, one channel), ``drawn/`` and ``predictions.json``, which explains the maps.

    The values of the maps are those of the data set's own maps: 1, 2, … where it keeps 0 for pixels
    without a class (``reduce_zero_label``), else 0, 1, ….

    Args:
        model: From :func:`load_model`.
        out_dir: Folder to write to.
        opacity: Of the colours over the image, 0 to 1.
    """

    def __init__(self, model: nn.Module, out_dir: Path, opacity: float = 0.5) -> None:
        from mmseg.visualization import SegLocalVisualizer

        self.out_dir = out_dir
        self.visualizer = SegLocalVisualizer(alpha=opacity)
        meta = model.dataset_meta
        self.visualizer.dataset_meta = dict(classes=meta['classes'], palette=meta['palette'])
        self.first = int(bool(meta.get('reduce_zero_label')))
        classes = [
            dict(id=i, name=name, color=list(map(int, color)))
            for i, (name, color) in enumerate(
                zip(meta['classes'], meta['palette'], strict=True), start=self.first
            )
        ]
        self.content: dict[str, list[dict[str, Any]]] = dict(images=[], classes=classes)

    def add(self, file: ImageFile, image: np.ndarray, sample: BaseDataElement) -> None:
        """Draw and keep the predictions of one image."""
        labels = sample.pred_sem_seg.data[0].numpy() + self.first
        drawn, label_map = f'drawn/{file.name}.jpg', f'maps/{file.name}.png'
        path = self.out_dir / label_map
        path.parent.mkdir(parents=True, exist_ok=True)
        last = self.first + len(self.content['classes'])
        Image.fromarray(labels.astype(np.uint8 if last <= 256 else np.uint16)).save(path)
        values, counts = np.unique(labels, return_counts=True)
        self.content['images'].append(
            dict(
                file_name=str(file.path),
                width=image.shape[1],
                height=image.shape[0],
                label_map=label_map,
                drawn=drawn,
                pixels={str(v): int(n) for v, n in zip(values, counts, strict=True)},
            )
        )
        _draw(self.visualizer, image, sample, self.out_dir / drawn)

    def close(self) -> str:
        """Write the JSON, and say what was written."""
        _write_json(self.out_dir / PREDICTIONS, self.content)
        return (
            f'label maps in {self.out_dir / "maps"}/, their values explained in '
            f'{self.out_dir / PREDICTIONS}, pictures in {self.out_dir / "drawn"}/'
        )


def default_category_ids(classes: tuple[str, ...]) -> list[int]:
    """COCO's own ids for its 80 classes, else 1, 2, …."""
    # Those of mmdet.evaluation are spelled with underscores.
    from mmdet.datasets.coco import CocoDataset

    if tuple(classes) == tuple(CocoDataset.METAINFO['classes']):
        return [i for i in range(1, 91) if i not in COCO_GAPS]
    return list(range(1, len(classes) + 1))


def _encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Fields of an annotation from a mask (height, width)."""
    # It comes with mmdet; segmentation does not need it.
    from pycocotools import mask as coco_mask

    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = rle['counts'].decode()
    return dict(area=int(coco_mask.area(rle)), segmentation=dict(size=list(rle['size']), counts=counts))


def _draw(visualizer: Any, image: np.ndarray, sample: BaseDataElement, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    visualizer.add_datasample(
        path.stem, mmcv.bgr2rgb(image), sample, draw_gt=False, show=False, out_file=str(path), **options
    )


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding='utf-8')
