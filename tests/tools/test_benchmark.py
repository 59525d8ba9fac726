import csv
import json
import runpy
import sys
from pathlib import Path

import pytest
from tiny import REPOSITORY

TOOL = REPOSITORY / 'tools' / 'benchmark.py'
TINY = 'MobileMamba(arch=dict(widths=(16,24,32),depths=(1,1,1)))'
QUICK = ('--repeats', '2', '--warmup', '0', '--matmul-size', '32', '--device', 'cpu')


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run the tool in this process, in an empty folder; gives what it printed."""
    monkeypatch.chdir(tmp_path)

    def tool(*arguments):
        monkeypatch.setattr(sys, 'argv', [str(TOOL), *map(str, arguments)])
        runpy.run_path(str(TOOL), run_name='__main__')
        return capsys.readouterr()

    return tool


def test_backbones_side_by_side(run):
    models = (f'ours={TINY}', f'folded={TINY}+deploy', 'peer=mmdet.MobileNetV2(out_indices=(2,4,6))')
    shapes = ('--sizes', '64', '96x64', '128', '--batch-sizes', '1', '2')
    files = ('table.md', 'table.csv', 'table.json', 'picture.png')
    printed = run(*models, *shapes, *QUICK, '--no-memory', '--channels-last', '--out', *files)
    table, fits = printed.out.split('Largest ratio')
    rows = [line.strip('| ').split(' | ') for line in table.splitlines() if line.startswith('| ')][2:]
    assert len(rows) == 3 * 3 * 2
    # Interleaved: the models follow each other within a size.
    assert [row[0] for row in rows[:4]] == ['ours', 'folded', 'peer', 'ours']
    assert [row[1:4] for row in rows[3::9][:2]] == [['96×64', '1', 'float32'], ['96×64', '2', 'float32']]
    assert fits.count('| ours |') == 2
    assert printed.err.count('/6] ') == 6
    found = json.loads(Path('table.json').read_text())
    assert found['environment']['channels_last'] is True
    assert [r['model'] for r in found['results']] == [row[0] for row in rows]
    with open('table.csv') as file:
        assert [float(row['time']) for row in csv.DictReader(file)] == [r['time'] for r in found['results']]
    assert Path('table.md').read_text().strip() in printed.out
    assert Path('picture.png').stat().st_size > 10_000


def test_published_accuracies_training_and_profile(run):
    arguments = ('t2', '--sizes', 'published', '--train', '--profile', '--plot', 'accuracy')
    printed = run(*arguments, *QUICK, '--no-memory', '--out', 'one.json', 'accuracy.png').out
    (result,) = json.loads(Path('one.json').read_text())['results']
    assert (result['height'], result['published_top1']) == (192, 73.6)
    assert result['train_time'] > result['time']
    assert '| selective scan | 5 |' in printed and '73.6' in printed
    assert Path('accuracy.png').exists()
    Path('twin.json').write_text(Path('one.json').read_text().replace('"t2"', '"twin"'))
    again = run('--read', 'one.json', 'twin.json', '--top1', 't2@192=71.5', '--out', 'two.json').out
    assert 'one.json' not in again
    both = json.loads(Path('two.json').read_text())
    assert [r['published_top1'] for r in both['results']] == [71.5, 73.6]
    assert both['results'][0]['time'] == result['time']
    with pytest.raises(SystemExit, match='more than one result is of t2, 192x192, batch 1, float32'):
        run('--read', 'one.json', 'one.json')


def test_a_detector(run, det_config):
    run(det_config, f'{det_config}+deploy', '--sizes', '96x128', *QUICK, '--no-memory', '--out', 'x.json')
    plain, folded = json.loads(Path('x.json').read_text())['results']
    assert (plain['model'], folded['model']) == ('tiny_retinanet', 'tiny_retinanet+deploy')
    assert plain['flops'] == folded['flops'] > 0
    assert plain['batch_norm_flops'] > folded['batch_norm_flops'] == 0


def test_memory(run):
    printed = run(f'ours={TINY}', '--sizes', '64', '--dtypes', 'bfloat16', *QUICK, '--out', 'x.json').out
    (result,) = json.loads(Path('x.json').read_text())['results']
    assert result['dtype'] == 'bfloat16'
    if sys.platform == 'linux':
        assert result['peak_memory'] > 0
        assert 'peak memory (MiB)' in printed


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['b9'], "'b9' is none of"),
        (['b1', '--sizes', '64x'], "'64x' must be a side in pixels"),
        (['b1', '--sizes', '0'], "'0' must be a side in pixels"),
        ([f'x={TINY}', '--sizes', 'published'], 'only variants of MobileMamba have one, not x'),
        (['b1', '--dtypes', 'float16', '--device', 'cpu'], 'float16 is for GPUs'),
        (['b1', '--device', 'cuda:99'], 'cuda:99 cannot be used'),
        (['b1', '--out', 'x.xls'], 'must end in one of .md'),
        (['b1', '--top1', 'b1=80'], "'b1=80' must be MODEL@SIZE=%"),
        (['b1', '--top1', 'b1@224=80'], 'no b1@224x224, but b1@512x512'),
        (['b1', '--sizes', '100', '--plot', 'accuracy', '--out', 'x.png'], 'needs accuracies'),
        (['--read', 'none.json'], 'none.json is no JSON file'),
        (['x=b1', 'x=t2'], 'More than one model would be called x'),
        (['b1+compile', '--profile'], 'Leave out b1+compile'),
    ],
)
def test_errors(run, arguments, message):
    with pytest.raises(SystemExit) as raised:
        run(*arguments)
    assert str(raised.value).startswith('error: ') and message in str(raised.value)


@pytest.mark.parametrize(
    'arguments',
    [
        [],
        ['b1', '--read', 'x.json'],
        ['--read', 'x.json', '--train'],
        ['b1', '--repeats', '0'],
        ['b1', '--batch-sizes', '0'],
    ],
)
def test_usage(run, arguments, capsys):
    with pytest.raises(SystemExit) as raised:
        run(*arguments)
    assert raised.value.code == 2


def test_help_teaches(run, capsys):
    with pytest.raises(SystemExit):
        run('--help')
    text = capsys.readouterr().out
    for part in ('+deploy', 'timm:NAME', 'Examples', 'What the numbers mean', '9·L·D·N'):
        assert part in text
