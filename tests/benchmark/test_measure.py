import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

from mmmobilemamba.benchmark import measure as measuring
from mmmobilemamba.benchmark import memory
from mmmobilemamba.benchmark.candidates import Candidate, Workload
from mmmobilemamba.benchmark.measure import Settings, measure
from mmmobilemamba.errors import UserError

CPU = torch.device('cpu')
QUICK = Settings(CPU, repeats=2, warmup=0, matmul_size=32, memory=False)
TINY = 'MobileMamba(arch=dict(widths=(16,24,32),depths=(1,1,1)))'
PLAIN, FOLDED = (
    Candidate.parse(f'{name}={TINY}{end}') for name, end in (('plain', ''), ('folded', '+deploy'))
)


def test_one_result_per_workload(monkeypatch):
    seconds = iter([0.001, 0.1, 0.2, 0.3] * 2)
    monkeypatch.setattr(measuring, 'stopwatch', lambda device: lambda run: (run(), next(seconds))[1])
    case = [Workload(PLAIN, 64, 96, 2), Workload(FOLDED, 64, 96, 2)]
    steps = []

    def progress(items, label):
        steps.append((len(items), label))
        return items

    plain, folded = measure([case], replace(QUICK, train=True), progress)
    assert [label for _, label in steps] == ['trying every model once', '[1/1] 64x96, batch 2, float32']
    assert [count for count, _ in steps] == [2, 2]
    assert (plain.time, plain.train_time, folded.time, folded.train_time) == (0.1, 0.2, 0.3, None)
    assert plain.matmul_rate == folded.matmul_rate == pytest.approx(32**3 / 0.001)
    assert plain.flops == folded.flops and plain.parameters > folded.parameters
    assert (plain.height, plain.width, plain.batch, plain.dtype) == (64, 96, 2, 'float32')


def test_flops_are_those_of_one_image():
    one, four = (measure([[Workload(PLAIN, 64, 64, batch)]], QUICK)[0] for batch in (1, 4))
    assert (one.flops, one.scan_flops) == (four.flops, four.scan_flops)


@pytest.mark.parametrize(
    ('candidate', 'size', 'train', 'message'),
    [
        (PLAIN, 32, True, '32x32.*training: cannot run .Expected more than 1 value'),
        (FOLDED, 64, True, 'folded models cannot be trained'),
        (Candidate.parse('x.py'), 64, True, 'times backbones, not detectors and segmentors .x'),
        (
            Candidate.parse('mmdet.MobileNetV2(out_indices=(2,),frozen_stages=9)'),
            64,
            False,
            'cannot be built',
        ),
    ],
)
def test_what_cannot_run(candidate, size, train, message):
    with pytest.raises(UserError, match=message):
        measure([[Workload(candidate, size, size)]], replace(QUICK, train=train))


def test_failures_come_before_the_timing(monkeypatch):
    monkeypatch.setattr(measuring, 'interleave', lambda *_: pytest.fail('timed'))
    broken = Candidate.parse('mmdet.SwinTransformer(in_channels=4)')
    with pytest.raises(UserError, match='64x64, batch 1, float32: cannot run .*Try another size'):
        measure([[Workload(PLAIN, 64, 64)], [Workload(broken, 64, 64)]], QUICK)


def peak_of(side):
    workload = Workload(PLAIN, side, side)
    return memory.peak_memory(partial(workload.make, CPU), CPU, str(workload))


@pytest.mark.skipif(sys.platform != 'linux', reason='memory is told by /proc')
def test_peak_memory_is_that_of_weights_and_images():
    small, large = (peak_of(side) for side in (64, 1536))
    # Growth of that kind is known to a few pages of the allocator only.
    assert 0 < small < 30 * 2**20
    images = 4 * 3 * 1536 * 1536
    assert images < large - small < 5 * images


class Growing(torch.nn.Module):
    """A tensor of 24 MiB, those of 1, 2, ... 16, and what stays behind each; no two large ones at once."""

    def forward(self, x):
        torch.ones(24 * 2**18)
        return [(torch.ones(n * 2**18), torch.ones(2**12))[1] for n in range(1, 17)]


def growing():
    return Growing(), torch.ones(1)


@pytest.mark.skipif(sys.platform != 'linux', reason='memory is told by /proc')
def test_peak_memory_is_free_of_what_the_allocator_keeps():
    # Mostly 136 MiB where the holes stay in the process.
    assert memory.peak_memory(growing, CPU, 'growing') == pytest.approx(24 * 2**20, rel=0.1)


def test_memory_is_left_out_where_the_system_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, 'PROCESS', tmp_path)
    (result,) = measure([[Workload(PLAIN, 64, 64)]], replace(QUICK, memory=True))
    assert result.peak_memory is None


def test_a_killed_process_is_explained(monkeypatch):
    class Pool:
        def __init__(self, *_, **__):
            raise memory.BrokenProcessPool

    monkeypatch.setattr(memory, 'ProcessPoolExecutor', Pool)
    with pytest.raises(UserError, match='plain, 64x64.*was killed.*--no-memory'):
        peak_of(64)
