import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image
from pycocotools.coco import COCO

REPOSITORY = Path(__file__).parents[2]


def make_checkpoint(config: Path, classes: tuple[str, ...], out: Path, **meta) -> Path:
    """Random weights for as many classes as are named."""
    from mmmobilemamba.datasets.data_root import set_num_classes

    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    set_num_classes(cfg.model, len(classes))
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    torch.save(
        dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=classes, **meta))), out
    )
    return out


@pytest.fixture
def infer(tmp_path, monkeypatch):
    def infer(*arguments) -> None:
        path = str(REPOSITORY / 'tools/infer.py')
        monkeypatch.setattr(sys, 'argv', [path, *map(str, arguments)])
        runpy.run_path(path, run_name='__main__')

    monkeypatch.chdir(tmp_path)
    return infer


def test_detection(tmp_path, infer, det_config, coco_root):
    checkpoint = make_checkpoint(det_config, ('a', 'b', 'c'), tmp_path / 'x.pth')
    (coco_root / 'val2017/cut.jpg').write_bytes((coco_root / 'val2017/000000.jpg').read_bytes()[:300])
    with pytest.raises(SystemExit, match=r'2 inputs could not be used:\n.*gone\.jpg.*\n.*cut\.jpg'):
        infer(
            *(det_config, checkpoint, coco_root / 'val2017', 'gone.jpg', '--score-thr', 0),
            *('--device', 'cpu', '--batch-size', 2, '--out-dir', 'out'),
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
    infer(seg_config, checkpoint, ade_root / 'images/validation', '--device', 'cpu', '--deploy')
    content = json.loads((tmp_path / 'predictions/predictions.json').read_text())
    assert [(c['id'], c['name']) for c in content['classes']] == list(enumerate(classes, start=1))
    for image in content['images']:
        values = np.asarray(Image.open(tmp_path / 'predictions' / image['label_map']))
        assert values.shape == (72, 80) and set(np.unique(values)) <= {1, 2, 3}
        assert sum(image['pixels'].values()) == values.size
        assert (tmp_path / 'predictions' / image['drawn']).is_file()


def test_nothing_to_predict_on(infer, det_config):
    with pytest.raises(SystemExit, match='No image'):
        infer(det_config, 'x.pth', 'nowhere')
