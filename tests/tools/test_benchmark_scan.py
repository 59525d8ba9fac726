from dataclasses import replace

import pytest
import torch

from mmmobilemamba.ops.selective_scan import interface


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


def test_backends_of_other_devices_are_left_out(tool, capsys, monkeypatch):
    installed = replace(interface._backends['mamba_ssm'], missing=lambda: None)
    monkeypatch.setitem(interface._backends, 'mamba_ssm', installed)
    tool('benchmark_scan.py', '--channels', '3', '--length', '5', '--repeats', '1')
    said = capsys.readouterr().out
    assert '| torch |' in said and 'mamba_ssm' not in said


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--backends', 'fast'], "Unknown selective-scan backend 'fast'"),
        (['--backends', 'mamba_ssm'], "backend 'mamba_ssm' was asked for but cannot be used"),
        (['--device', 'gpu'], '--device gpu cannot be used'),
    ],
)
def test_errors(tool, arguments, message):
    with pytest.raises(SystemExit, match=message):
        tool('benchmark_scan.py', '--length', '3', *arguments)
