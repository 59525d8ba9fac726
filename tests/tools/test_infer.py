import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.datasets.coco import CocoDataset
from PIL import Image
from pycocotools.coco import COCO
from tiny import CLASSES, make_checkpoint

from mmmobilemamba.checkpoint import to_authors_checkpoint


@pytest.fixture
def infer(tool):
    """Run the tool on the CPU."""
    return lambda *arguments: tool('infer.py', *arguments, '--device', 'cpu')


def without_names(checkpoint: Path) -> Path:
    """The same in the authors' layout, whose files name no classes."""
    content = to_authors_checkpoint(torch.load(checkpoint))
    path = checkpoint.with_name('authors.pth')
    torch.save({'state_dict': content['state_dict']}, path)
    return path


def test_detection(tmp_path, infer, det_config, coco_root):
    checkpoint = make_checkpoint(det_config, ('a', 'b', 'c'), tmp_path / 'x.pth')
    (coco_root / 'val2017/cut.jpg').write_bytes((coco_root / 'val2017/000000.jpg').read_bytes()[:300])
    Image.new('RGB', (2000, 3)).save(coco_root / 'val2017/thin.png')
    words = r'3 inputs could not be used:\n.*gone\.jpg.*\n.*cut\.jpg.*\n.*thin\.png.*2000x3 pixels'
    with pytest.raises(SystemExit, match=words):
        infer(
            *(det_config, checkpoint, coco_root / 'val2017', 'gone.jpg', '--score-thr', 0),
            *('--batch-size', 2, '--out-dir', 'out'),
        )
    coco = COCO(str(tmp_path / 'out/predictions.json'))
    assert [c['name'] for c in coco.cats.values()] == ['a', 'b', 'c']
    assert [Path(i['file_name']).name for i in coco.imgs.values()] == ['000000.jpg', '000001.jpg']
    assert coco.anns and all(0 <= a['score'] <= 1 for a in coco.anns.values())
    assert len(coco.loadRes(list(coco.anns.values())).anns) == len(coco.anns)
    for image in coco.imgs.values():
        assert Image.open(tmp_path / 'out' / image['drawn']).size == (image['width'], image['height'])


def test_segmentation(tmp_path, infer, seg_config, ade_root):
    classes = ('background', 'square', 'stripe')
    checkpoint = make_checkpoint(seg_config, classes, tmp_path / 'x.pth', reduce_zero_label=True)
    infer(seg_config, checkpoint, ade_root / 'images/validation', '--deploy')
    content = json.loads((tmp_path / 'predictions/predictions.json').read_text())
    assert [(c['id'], c['name']) for c in content['classes']] == list(enumerate(classes, start=1))
    for image in content['images']:
        values = np.asarray(Image.open(tmp_path / 'predictions' / image['label_map']))
        assert values.shape == (72, 80) and set(np.unique(values)) <= {1, 2, 3}
        assert sum(image['pixels'].values()) == values.size
        assert (tmp_path / 'predictions' / image['drawn']).is_file()


@pytest.mark.parametrize('data_root', [True, False])
def test_maps_have_the_values_of_the_data_set(tmp_path, infer, seg_config, ade_root, data_root):
    """Whether the checkpoint or the data set names the classes."""
    classes = ('background', *CLASSES)
    checkpoint = make_checkpoint(seg_config, classes, tmp_path / 'x.pth', reduce_zero_label=True)
    options = ('--data-root', ade_root) if data_root else ()
    infer(seg_config, checkpoint, ade_root / 'images/validation/000.jpg', *options)
    content = json.loads((tmp_path / 'predictions/predictions.json').read_text())
    assert [(c['id'], c['name']) for c in content['classes']] == list(enumerate(classes, start=1))
    values = np.unique(np.asarray(Image.open(tmp_path / 'predictions/maps/000.png')))
    assert set(values) <= {1, 2, 3}


def test_a_detector_without_names_takes_those_of_the_config(tmp_path, infer, det_config, coco_root):
    coco = tuple(CocoDataset.METAINFO['classes'])
    checkpoint = without_names(make_checkpoint(det_config, coco, tmp_path / 'x.pth'))
    infer(det_config, checkpoint, coco_root / 'val2017/000000.jpg')
    written = COCO(str(tmp_path / 'predictions/predictions.json'))
    assert tuple(c['name'] for c in written.cats.values()) == coco


def test_a_segmentor_without_names_takes_those_of_the_config(tmp_path, infer, seg_config, ade_root):
    checkpoint = make_checkpoint(seg_config, tuple(map(str, range(150))), tmp_path / 'x.pth')
    infer(seg_config, without_names(checkpoint), ade_root / 'images/validation/000.jpg')
    content = json.loads((tmp_path / 'predictions/predictions.json').read_text())
    # Line 1 of ADE20K's classes; 0 of its maps is no class.
    assert content['classes'][0] | {'color': 0} == {'id': 1, 'name': 'wall', 'color': 0}
    assert len(content['classes']) == 150


def test_nothing_to_predict_on(infer, det_config):
    with pytest.raises(SystemExit, match='No image'):
        infer(det_config, 'x.pth', 'nowhere')
