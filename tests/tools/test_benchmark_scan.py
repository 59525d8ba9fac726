import pytest
import torch


def test_one_table_per_case(tool, capsys):
    shape = ('--channels', '3', '--states', '2', '--length', '5', '9', '--directions', '1', '2')
    tool(
        *('benchmark_scan.py', *shape, '--backends', 'torch', 'reference'),
        *('--repeats', '2', '--layout', 'last', '--threads', torch.get_num_threads()),
    )
    said = capsys.readouterr().out
    rows = [line.split(' | ') for line in said.splitlines() if line.startswith('| ') and '---' not in line]
    assert [row[0] for row in rows] == 4 * ['| backend', '| floor', '| torch', '| reference']
    assert {len(row) for row in rows} == {10}
    assert 'B=1, D=3, N=2, L=9, directions: 2, channels last, float32' in said


def test_unknown_backend(tool):
    with pytest.raises(SystemExit, match="Unknown selective-scan backend 'fast'"):
        tool('benchmark_scan.py', '--backends', 'fast', '--length', '3')
