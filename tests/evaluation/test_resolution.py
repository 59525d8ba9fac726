import json
import os

import pytest
from mmengine.config import Config

from mmmobilemamba.datasets import retarget
from mmmobilemamba.errors import UserError
from mmmobilemamba.evaluation import table
from mmmobilemamba.evaluation.resolution import (
    ResultFile,
    SizeResult,
    TestSize,
    result_key,
    set_mode,
    set_test_scale,
    test_scale,
)


def result(**changes) -> SizeResult:
    values = dict(
        scale=(800, 1333),
        mode='whole',
        metrics={'coco/bbox_mAP': 0.395, 'coco/bbox_mAP_50': 0.6},
        input_size=(800, 1088),
        gflops=12.345,
        scan_gflops=0.5,
        latency_ms=20.04,
        peak_memory_mib=512.4,
        device='CPU',
    )
    return SizeResult(**{**values, **changes})


@pytest.mark.parametrize(
    'text, scale, expected',
    [
        ('512', (320, 320), (512, 512)),
        ('400', (800, 1333), (400, 666)),
        ('512', (512, 2048), (512, 2048)),
        ('480x640', (800, 1333), (480, 640)),
        ('480×640', (800, 1333), (480, 640)),
    ],
)
def test_sizes_follow_the_proportions_of_the_config(text, scale, expected):
    assert TestSize.parse(text).fit(scale) == expected


@pytest.mark.parametrize('text', ['', '0', '-1', '1x2x3', 'x5', 'big', '1.5'])
def test_bad_sizes(text):
    with pytest.raises(UserError, match='neither a shorter side'):
        TestSize.parse(text)


def test_sizes_are_height_by_width_and_those_of_pipelines_the_other_way_round(det_config):
    cfg = Config.fromfile(det_config)
    set_test_scale(cfg, TestSize.parse('800x1333').fit(test_scale(cfg)))
    assert cfg.test_dataloader.dataset.pipeline[1].scale == (1333, 800)
    assert test_scale(cfg) == (800, 1333)


@pytest.mark.parametrize(('crop', 'stride'), [((64, 64), (0, 32)), ((-5, 64), None), ((64, 64), (32, -1))])
def test_windows_of_no_size_are_refused(crop, stride):
    cfg = Config(dict(default_scope='mmseg', model={}))
    with pytest.raises(UserError, match='allowed are pixels from 1 up'):
        set_mode(cfg, 'slide', crop, stride)


def test_table_gives_coco_in_per_cent_and_miou_as_it_is():
    lines = table.to_markdown([result()]).splitlines()
    assert lines[0].startswith('| test scale (h×w) | mode | input (h×w) | box mAP | GFLOPs |')
    assert lines[2] == '| 800×1333 | whole | 800×1088 | 39.5 | 12.35 | 0.50 | 20.0 | 512 |'
    assert '| 36.9 |' in table.to_markdown([result(metrics={'mIoU': 36.9, 'aAcc': 80.0})])
    assert table.to_csv([result()]).splitlines()[1] == (
        '800,1333,whole,800,1088,0.395,0.6,12.345,0.5,20.04,512.4,CPU'
    )


def test_plot_is_written(tmp_path):
    table.plot([result(), result(mode='slide', scale=(1600, 2666))], tmp_path / 'x.png', 'title')
    assert (tmp_path / 'x.png').read_bytes().startswith(b'\x89PNG')


def test_results_are_kept_and_a_broken_file_is_refused(tmp_path):
    path = tmp_path / 'resolution.json'
    ResultFile(path).add('key', result())
    kept = ResultFile(path).get('key')
    assert kept.metrics == result().metrics and kept.short == 800
    assert ResultFile(path).get('other') is None
    path.write_text(json.dumps({'results': {'key': {'scale': 1}}}))
    with pytest.raises(UserError, match='is not a file of results'):
        ResultFile(path)


@pytest.fixture
def key(tmp_path, det_config, coco_root):
    (tmp_path / 'x.pth').write_bytes(b'weights')
    cfg = retarget(Config.fromfile(det_config), coco_root)
    return lambda: result_key(cfg, str(tmp_path / 'x.pth'), (64, 96), 'whole')


@pytest.mark.parametrize('changed', ['annotations/instances_val2017.json', 'val2017/000001.jpg'])
@pytest.mark.parametrize('way', ['content', 'time', 'gone'])
def test_other_data_are_another_result(key, coco_root, changed, way):
    before, file = key(), coco_root / changed
    assert key() == before
    if way == 'content':
        time = file.stat().st_mtime_ns
        file.write_bytes(file.read_bytes() + b' ')
        os.utime(file, ns=(time, time))
    elif way == 'time':
        os.utime(file, (1, 1))
    else:
        file.unlink()
    assert key() != before


def test_other_weights_are_another_result(key, tmp_path):
    before = key()
    (tmp_path / 'x.pth').write_bytes(b'others')
    assert key() != before
