import json
import runpy
import sys
from pathlib import Path

import pytest
from mmengine.visualization import Visualizer
from tiny import make_checkpoint

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    def evaluate(*arguments) -> None:
        Visualizer._instance_dict.clear()
        path = str(REPOSITORY / 'tools/eval_resolution.py')
        monkeypatch.setattr(sys, 'argv', [path, *map(str, arguments)])
        runpy.run_path(path, run_name='__main__')

    monkeypatch.setenv('LOCAL_RANK', '0')
    monkeypatch.chdir(tmp_path)
    return evaluate


def test_an_interrupted_run_goes_on(tmp_path, evaluate, seg_config, ade_root, capsys):
    checkpoint = make_checkpoint(seg_config, ('background', 'square', 'stripe'), tmp_path / 'x.pth')
    common = (seg_config, checkpoint, '--data-root', ade_root, '--work-dir', 'out', '--repeats', 1)
    evaluate(*common, '--sizes', '64')
    first = json.loads((tmp_path / 'out/resolution.json').read_text())['results']
    capsys.readouterr()
    evaluate(*common, '--sizes', '64', '96', '--mode', 'whole', 'slide')
    said = capsys.readouterr().out
    assert '[1/4] 128x64, whole: done before' in said and said.count(': testing') == 3
    results = json.loads((tmp_path / 'out/resolution.json').read_text())['results']
    assert len(results) == 4 and first.items() <= results.items()
    small, large = (r for r in results.values() if r['mode'] == 'whole')
    assert large['gflops'] > 2 * small['gflops'] > 0 and small['scan_gflops'] > 0
    assert 0 <= small['metrics']['mIoU'] <= 100
    for suffix in ('csv', 'md', 'png'):
        assert (tmp_path / f'out/resolution.{suffix}').stat().st_size > 100


def test_windows_are_for_segmentors(evaluate, tmp_path, det_config, coco_root):
    checkpoint = make_checkpoint(det_config, ('square', 'stripe'), tmp_path / 'x.pth')
    with pytest.raises(SystemExit, match='only segmentors'):
        evaluate(det_config, checkpoint, '--data-root', coco_root, '--sizes', 64, '--mode', 'slide')
