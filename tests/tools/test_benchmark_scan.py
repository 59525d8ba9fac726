import subprocess
import sys

from tiny import REPOSITORY

TOOL = REPOSITORY / 'tools' / 'benchmark_scan.py'


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, text=True)


def test_one_table_per_case():
    shape = ('--channels', '3', '--states', '2', '--length', '5', '9', '--directions', '1', '2')
    done = run(
        *shape, '--backends', 'torch', 'reference', '--repeats', '2', '--layout', 'last', '--threads', '1'
    )
    assert done.returncode == 0, done.stderr
    rows = [
        line.split(' | ') for line in done.stdout.splitlines() if line.startswith('| ') and '---' not in line
    ]
    assert [row[0] for row in rows] == 4 * ['| backend', '| floor', '| torch', '| reference']
    assert {len(row) for row in rows} == {10}
    assert 'B=1, D=3, N=2, L=9, directions: 2, channels last, float32' in done.stdout


def test_unknown_backend():
    done = run('--backends', 'fast', '--length', '3')
    assert done.returncode != 0
    assert "Unknown selective-scan backend 'fast'" in done.stderr
    assert 'Traceback' not in done.stderr
