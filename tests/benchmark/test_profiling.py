import pytest
import torch

from mmmobilemamba import MobileMamba
from mmmobilemamba.benchmark.profiling import BETWEEN, SCAN, group_of, profile_forward, summarise, to_markdown
from mmmobilemamba.layers import ss2d


class Event:
    """An event of the profiler with the time that it took itself, in seconds."""

    def __init__(self, name, time, parent=None):
        self.name, self.time, self.cpu_parent = name, time, parent


def test_times_are_summed_by_kind():
    forward = Event(BETWEEN, 2.0)
    scan = Event(SCAN, 1.0, forward)
    inner = Event('aten::mul', 4.0, scan)
    events = [
        forward,
        scan,
        inner,
        Event('aten::copy_', 1.0, inner),
        Event('aten::mm', 6.0, forward),
        Event('aten::mm', 4.0, forward),
        Event('aten::batch_norm', 2.0, forward),
        Event('outside', 50.0),
    ]
    found = summarise(events, lambda event: event.time, repeats=2)
    assert found.groups == {'matrix products': 5.0, SCAN: 3.0, BETWEEN: 1.0, 'normalisation': 1.0}
    assert list(found.groups)[:2] == ['matrix products', SCAN]
    assert found.operations['aten::mm'] == (5.0, 1.0)
    assert found.operations[SCAN] == (3.0, 0.5)
    assert found.total == 10.0 and found.scan_share == 0.3
    text = to_markdown('b1', found, rows=1)
    assert '| selective scan | 3000.00 | 30.0% |' in text
    assert text.splitlines()[-1] == '| aten::mm | 1 | 5000.00 | 50.0% |'


@pytest.mark.parametrize(
    ('name', 'group'),
    [
        ('aten::mkldnn_convolution', 'convolutions'),
        ('mkldnn::_convolution_pointwise', 'convolutions'),
        ('mmmobilemamba::stem', 'convolutions'),
        ('aten::addmm', 'matrix products'),
        ('aten::native_layer_norm', 'normalisation'),
        ('aten::add_', 'sums and products'),
        ('aten::silu_', 'activations'),
        ('aten::cat', 'copies'),
        ('aten::mean', 'pooling and resizing'),
        ('mmmobilemamba::dw_ffn', 'folded blocks'),
        ('aten::view', 'other'),
        (SCAN, SCAN),
    ],
)
def test_groups(name, group):
    assert group_of(name) == group


@pytest.mark.parametrize('backend', ['torch', 'reference'])
def test_scans_are_found_whatever_computes_them(backend):
    original = ss2d.bidirectional_selective_scan
    model = MobileMamba(dict(widths=(16, 16, 16), depths=(1, 2, 1)), scan_backend=backend).eval()
    found = profile_forward(model, torch.rand(1, 3, 64, 64), repeats=2, warmup=1)
    assert found.operations[SCAN][1] == 4
    assert 0 < found.scan_share < 1
    assert ss2d.bidirectional_selective_scan is original
