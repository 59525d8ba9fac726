import json

import pytest

from mmmobilemamba.errors import UserError
from mmmobilemamba.evaluation import table
from mmmobilemamba.evaluation.resolution import Result, ResultFile, TestSize


def result(**changes) -> Result:
    values = dict(
        scale='1333x800',
        mode='whole',
        metrics={'coco/bbox_mAP': 0.395, 'coco/bbox_mAP_50': 0.6},
        input_size=(800, 1088),
        gflops=12.345,
        scan_gflops=0.5,
        latency_ms=20.04,
        peak_memory_mib=512.4,
        device='CPU',
    )
    return Result(**{**values, **changes})


@pytest.mark.parametrize(
    'text, scale, expected',
    [
        ('512', (320, 320), (512, 512)),
        ('400', (1333, 800), (666, 400)),
        ('512', (2048, 512), (2048, 512)),
        ('640x480', (1333, 800), (640, 480)),
    ],
)
def test_sizes_follow_the_proportions_of_the_config(text, scale, expected):
    assert TestSize.parse(text).fit(scale) == expected


@pytest.mark.parametrize('text', ['', '0', '-1', '1x2x3', 'x5', 'big', '1.5'])
def test_bad_sizes(text):
    with pytest.raises(UserError, match='neither a shorter side'):
        TestSize.parse(text)


def test_table_gives_coco_in_per_cent_and_miou_as_it_is():
    lines = table.to_markdown([result()]).splitlines()
    assert lines[0].startswith('| test scale | mode | input (h×w) | box mAP | GFLOPs |')
    assert lines[2] == '| 1333x800 | whole | 800×1088 | 39.5 | 12.35 | 0.50 | 20.0 | 512 |'
    assert '| 36.9 |' in table.to_markdown([result(metrics={'mIoU': 36.9, 'aAcc': 80.0})])
    assert table.to_csv([result()]).splitlines()[1] == (
        '1333x800,whole,800,1088,0.395,0.6,12.345,0.5,20.04,512.4,CPU'
    )


def test_plot_is_written(tmp_path):
    table.plot([result(), result(mode='slide', scale='2666x1600')], tmp_path / 'x.png', 'title')
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
