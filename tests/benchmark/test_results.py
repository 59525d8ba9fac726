import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mmmobilemamba.benchmark import plot
from mmmobilemamba.benchmark.results import (
    Result,
    fit_line,
    linearity,
    matmul_rates,
    read_json,
    to_csv,
    to_json,
    to_markdown,
)
from mmmobilemamba.errors import UserError

RESULT = Result(
    model='b1',
    height=256,
    width=512,
    batch=4,
    dtype='float32',
    parameters=16_620_729,
    flops=2_000_000_000,
    scan_flops=11_000_000,
    batch_norm_flops=8_000_000,
    time=0.2,
    time_lower=0.19,
    time_upper=0.23,
    matmul_rate=80e9,
)
TRAINED = replace(RESULT, train_time=0.7, train_time_lower=0.65, train_time_upper=0.8)


def cells(line):
    return [cell.strip() for cell in line.strip('|').split('|')]


def test_what_follows_from_the_times():
    assert RESULT.images_per_second == pytest.approx(20)
    # 4 images of 2 G in 0.2 s are 40 of 80 G per second.
    assert RESULT.matmul_share == pytest.approx(0.5)
    assert RESULT.train_ratio is None
    assert TRAINED.train_ratio == pytest.approx(3.5)


def test_markdown_leaves_out_what_nobody_measured():
    head, _, row = map(cells, to_markdown([RESULT]).splitlines())
    assert dict(zip(head, row, strict=True)) == {
        'model': 'b1',
        'h×w': '256×512',
        'batch': '4',
        'dtype': 'float32',
        'params (M)': '16.62',
        'FLOPs (G)': '2.000',
        '+ scan (G)': '0.011',
        'latency (ms)': '200.0 (190.0–230.0)',
        'images/s': '20.0',
        'share of matmul rate': '50%',
    }


def test_markdown_with_everything():
    full = replace(TRAINED, model='b1+x', peak_memory=3 * 2**20, published_top1=82.5, scan_flops=0)
    head, rule, *rows = map(cells, to_markdown([RESULT, full]).splitlines())
    assert len({len(line) for line in (head, rule, *rows)}) == 1
    without, with_all = (dict(zip(head, row, strict=True)) for row in rows)
    assert with_all['forward + backward (ms)'] == '700.0 (650.0–800.0)'
    assert with_all['÷ forward'] == '3.50'
    assert with_all['peak memory (MiB)'] == '3'
    assert with_all['top-1 (%), published'] == '82.5'
    assert with_all['+ scan (G)'] == without['÷ forward'] == without['peak memory (MiB)'] == '–'


def test_rates():
    several = [
        RESULT,
        replace(RESULT, matmul_rate=90e9),
        replace(RESULT, dtype='bfloat16', matmul_rate=0.5e9),
    ]
    assert matmul_rates(several).endswith('float32 80–90, bfloat16 0.5.')


def test_csv_holds_everything_unrounded():
    rows = list(csv.DictReader(io.StringIO(to_csv([RESULT, TRAINED]))))
    assert float(rows[0]['time_upper']) == RESULT.time_upper
    assert int(rows[0]['batch_norm_flops']) == RESULT.batch_norm_flops
    assert rows[0]['train_time'] == rows[0]['peak_memory'] == ''
    assert float(rows[1]['train_ratio']) == TRAINED.train_ratio
    assert float(rows[1]['matmul_share']) == TRAINED.matmul_share


def test_json_comes_back(tmp_path):
    file = tmp_path / 'x.json'
    file.write_text(to_json([RESULT, TRAINED], dict(device='CPU')))
    assert read_json(file) == ([RESULT, TRAINED], dict(device='CPU'))


@pytest.mark.parametrize('text', ['', '[]', '{"results": [{"model": 1}], "environment": {}}'])
def test_other_json_is_refused(tmp_path, text):
    file = tmp_path / 'x.json'
    file.write_text(text)
    with pytest.raises(UserError, match='x.json is no JSON file of tools/benchmark.py'):
        read_json(file)


def test_fit_finds_a_line():
    x = np.array([1e4, 5e4, 2e6])
    assert fit_line(x, 0.02 + 3e-7 * x) == pytest.approx((0.02, 3e-7))


def test_fit_weighs_relative_deviations():
    """Against the minimum over a grid, found without algebra."""
    x, y = np.array([1.0, 2.0, 10.0]), np.array([1.0, 3.0, 9.0])
    grid = np.linspace(-1, 3, 401)
    a, b = np.meshgrid(grid, grid)
    loss = sum((1 - (a + b * xi) / yi) ** 2 for xi, yi in zip(x, y, strict=True))
    best = np.unravel_index(loss.argmin(), loss.shape)
    assert fit_line(x, y) == pytest.approx((a[best], b[best]), abs=0.011)


def sized(side, time, **options):
    return replace(RESULT, height=side, width=side, time=time, **options)


def test_linearity_reports_the_worst_size():
    straight = [sized(s, 0.1 + s * s * 1e-6, peak_memory=1e6 + 10 * s * s) for s in (100, 200, 400)]
    *_, row = linearity(straight).splitlines()
    assert cells(row)[:3] == ['b1', '4', 'float32']
    assert [float(cell.split()[0]) for cell in cells(row)[3:]] == [1.0, 1.0]
    bent = [replace(r, time=1.5 * r.time) if r.height == 200 else r for r in straight]
    time = cells(linearity(bent).splitlines()[-1])[3]
    assert time.endswith('(at 200×200)') and 1.1 < float(time.split()[0]) < 1.5


def test_linearity_needs_three_sizes():
    two = [sized(100, 1.0), sized(200, 2.0), sized(200, 3.0)]
    assert linearity(two) is None
    # Sizes of different data types are no series.
    assert linearity([*two, sized(300, 4.0, dtype='bfloat16')]) is None
    assert linearity([*two, sized(300, 4.0)]).splitlines()[-1].endswith('| – |')


def test_pictures(tmp_path):
    found = [sized(s, s * s * 1e-6, peak_memory=10.0 * s * s, published_top1=80.0) for s in (100, 400)]
    found.append(sized(200, 0.1, dtype='bfloat16'))
    for kind in plot.KINDS:
        plot.plot(kind, found, tmp_path / f'{kind}.png', 'title')
        pixels = np.asarray(Image.open(tmp_path / f'{kind}.png').convert('RGB'))
        colours = np.unique(pixels.reshape(-1, 3), axis=0)
        # More than black text on white: lines or points in colours.
        assert (np.ptp(colours.astype(int), axis=1) > 100).any()


def test_no_picture_of_accuracies_without_them(tmp_path):
    with pytest.raises(UserError, match='--top1'):
        plot.plot('accuracy', [RESULT], tmp_path / 'x.png', 'title')


def test_numbers_in_json_are_plain():
    assert json.loads(to_json([RESULT], {}))['results'][0]['flops'] == RESULT.flops
