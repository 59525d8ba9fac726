import pytest
import torch
from torch import nn

from mmmobilemamba.layers import fused_conv
from mmmobilemamba.layers.fused_conv import FusedConv2d

pytestmark = pytest.mark.skipif(
    torch.float32 not in fused_conv._onednn_dtypes(), reason='this torch has no fused convolutions'
)


def layout(packed: torch.Tensor) -> bytes:
    return torch.ops.mkldnn._get_mkldnn_serialized_md(packed).numpy().tobytes()


def pack(conv: FusedConv2d, shape: torch.Size) -> torch.Tensor:
    geometry = conv.padding, conv.stride, conv.dilation, conv.groups
    return torch.ops.mkldnn._reorder_convolution_weight(conv.weight.detach(), *geometry, list(shape))


@torch.no_grad()
def test_each_shape_has_the_layout_that_is_fast_for_it():
    plain = nn.Conv2d(448, 896, 1)
    conv, x = FusedConv2d(plain), torch.randn(1, 448, 20, 20)
    inputs = [x[..., :size, :size].contiguous(memory_format=torch.channels_last) for size in (4, 8, 20)]
    for _ in range(2):
        for x in inputs:
            torch.testing.assert_close(conv(x), plain(x), rtol=1e-4, atol=1e-4)
    assert list(conv._packed) == [x.shape for x in inputs]
    for shape, packed in conv._packed.items():
        assert layout(packed) == layout(pack(conv, shape))
    # Equal layouts are kept once.
    assert len(set(map(id, conv._packed.values()))) == len(set(map(layout, conv._packed.values())))


@torch.no_grad()
def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(fused_conv, 'MAX_SHAPES', 3)
    conv = FusedConv2d(nn.Conv2d(3, 4, 3, stride=2, padding=1), 'relu')
    for size in range(1, 9):
        assert conv(torch.randn(1, 3, size, size)).min() >= 0
        assert 0 < len(conv._layouts) <= len(conv._packed) <= 3
