import json
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def analysis(tmp_path, monkeypatch):
    def analysis(name, *arguments) -> None:
        path = str(REPOSITORY / 'tools/analysis' / name)
        monkeypatch.setattr(sys, 'argv', [path, *map(str, arguments)])
        runpy.run_path(path, run_name='__main__')

    monkeypatch.chdir(tmp_path)
    return analysis


def test_receptive_fields_are_drawn_and_printed(tmp_path, analysis, capsys):
    analysis('erf.py', 't2', 'mmdet.ResNet(depth=18)', '--size', 64, '--num-images', 1, '--device', 'cpu')
    said = capsys.readouterr().out
    assert '| t2 |' in said and '| mmdet.ResNet(depth=18) |' in said
    assert Image.open(tmp_path / 'erf.png').size[0] > 500


def test_curves_of_runs_by_epoch(tmp_path, analysis):
    log = tmp_path / 'run/1/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    lines = [dict(lr=0.1, loss=2.0, iter=1, epoch=1, step=1), {'coco/bbox_mAP': 0.2, 'step': 1}]
    log.write_text('\n'.join(map(json.dumps, lines)) + '\n{"lr": 0.')
    analysis('curves.py', 'run')
    assert Image.open('curves.png').size[0] > 1000
    with pytest.raises(SystemExit, match='has no mIoU. It has: coco/bbox_mAP, loss, lr'):
        analysis('curves.py', 'run', '--keys', 'mIoU')
    with pytest.raises(SystemExit, match='holds no log'):
        analysis('curves.py', 'elsewhere')
