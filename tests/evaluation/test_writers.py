import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmdet.datasets.coco import CocoDataset
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask

from mmmobilemamba.evaluation.images import ImageFile
from mmmobilemamba.evaluation.writers import DetectionWriter, default_category_ids

IMAGE = np.zeros((40, 60, 3), np.uint8)


def writer(tmp_path, **options):
    meta = dict(classes=('a', 'b'), palette=[(255, 0, 0), (0, 255, 0)])
    return DetectionWriter(SimpleNamespace(dataset_meta=meta), tmp_path, 0.3, **options)


def sample(**fields):
    boxes = torch.tensor([[10.0, 5.0, 30.0, 25.0], [0.0, 0.0, 8.0, 4.0]])
    found = InstanceData(bboxes=boxes, scores=torch.tensor([0.9, 0.1]), labels=torch.tensor([1, 0]), **fields)
    return DetDataSample(pred_instances=found)


@pytest.mark.parametrize('category_ids', [None, [7, 5]])
def test_boxes_are_those_of_coco_and_weak_ones_left_out(tmp_path, category_ids):
    found = writer(tmp_path, category_ids=category_ids)
    found.add(ImageFile(tmp_path / 'x.jpg', 'x'), IMAGE, sample())
    found.close()
    (annotation,) = json.loads((tmp_path / 'predictions.json').read_text())['annotations']
    assert annotation['bbox'] == [10, 5, 20, 20] and annotation['area'] == 400
    assert annotation['category_id'] == (5 if category_ids else 2)
    assert 'segmentation' not in annotation


def test_masks_come_back(tmp_path):
    masks = torch.zeros(2, 40, 60, dtype=torch.bool)
    masks[0, 7:20, 12:29] = True
    found = writer(tmp_path)
    found.add(ImageFile(tmp_path / 'x.jpg', 'x'), IMAGE, sample(masks=masks))
    found.close()
    (annotation,) = json.loads((tmp_path / 'predictions.json').read_text())['annotations']
    assert annotation['area'] == 13 * 17
    np.testing.assert_array_equal(coco_mask.decode(annotation['segmentation']), masks[0])


def test_the_surest_is_drawn_on_top(tmp_path, monkeypatch):
    found, drawn = writer(tmp_path), []
    monkeypatch.setattr(found.visualizer, 'add_datasample', lambda name, image, s, **_: drawn.append(s))
    both = sample()
    both.pred_instances.scores[1] = 0.8
    found.add(ImageFile(tmp_path / 'x.jpg', 'x'), IMAGE, both)
    assert drawn[0].pred_instances.labels.tolist() == [0, 1]
    assert [a['category_id'] for a in found.content['annotations']] == [2, 1]


def test_category_ids_of_coco_have_its_gaps():
    ids = default_category_ids(CocoDataset.METAINFO['classes'])
    # Of 80 classes from 1 (person) to 90 (toothbrush); 12 and 91 are none, and 13 is the stop sign.
    assert len(ids) == 80 and ids[0] == 1 and ids[-1] == 90 and ids[11] == 13
    assert default_category_ids(('a', 'b')) == [1, 2]
