import json

import pytest
from PIL import Image


@pytest.fixture
def analysis(tool):
    return lambda name, *arguments: tool(f'analysis/{name}', *arguments)


def test_receptive_fields_are_drawn_and_printed(tmp_path, analysis, capsys):
    analysis('erf.py', 't2', 'mmdet.ResNet(depth=18)', '--size', 64, '--num-images', 1, '--device', 'cpu')
    said = capsys.readouterr().out
    assert '| t2 |' in said and '| mmdet.ResNet(depth=18) |' in said
    assert Image.open(tmp_path / 'erf.png').size[0] > 500
    rows = [line.strip('| ').split(' | ') for line in said.splitlines() if line.startswith('| ')][2:]
    shares = [[float(cell) for cell in row[1:]] for row in rows]
    # More of the gradient needs more of the area.
    assert all(0 < row[0] <= row[1] <= row[2] <= row[3] <= 100 for row in shares)


def test_a_map_that_is_not_there_is_an_error(analysis):
    with pytest.raises(SystemExit, match='error: There is no map 7: MobileMamba gives 3'):
        analysis('erf.py', 't2', '--size', 64, '--num-images', 1, '--device', 'cpu', '--out-index', 7)


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


@pytest.mark.parametrize('script', ['erf.py', 'curves.py'])
def test_a_picture_of_an_unknown_format_is_refused_at_once(analysis, script):
    with pytest.raises(SystemExit, match='--out x.xyz: the name of a picture must end in one of .*png'):
        analysis(script, 't2', '--out', 'x.xyz')
