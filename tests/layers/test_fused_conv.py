import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmmobilemamba.layers import fused_conv as fused_conv_module
from mmmobilemamba.layers.fused_conv import FusedConv2d
from mmmobilemamba.ops import native

pytestmark = pytest.mark.skipif(
    torch.float32 not in fused_conv_module._onednn_dtypes(), reason='this torch has no fused convolutions'
)


def layout(packed: torch.Tensor) -> bytes:
    return torch.ops.mkldnn._get_mkldnn_serialized_md(packed).numpy().tobytes()


def pack(conv: FusedConv2d, shape: torch.Size) -> torch.Tensor:
    geometry = conv.padding, conv.stride, conv.dilation, conv.groups
    return torch.ops.mkldnn._reorder_convolution_weight(conv.weight.detach(), *geometry, list(shape))


@torch.no_grad()
def test_each_shape_has_the_layout_that_is_fast_for_it():
    plain = nn.Conv2d(448, 896, 3, stride=2, padding=1)
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
    monkeypatch.setattr(fused_conv_module, 'MAX_SHAPES', 3)
    conv = FusedConv2d(nn.Conv2d(3, 4, 3, stride=2, padding=1), 'relu')
    for size in range(1, 9):
        assert conv(torch.randn(1, 3, size, size)).min() >= 0
        assert 0 < len(conv._layouts) <= len(conv._packed) <= 3


@torch.no_grad()
@pytest.mark.parametrize('activation', ['none', 'relu', 'swish'])
@pytest.mark.parametrize('options', [dict(kernel_size=1), dict(kernel_size=5, padding=2, groups=40)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_every_kind_is_the_plain_convolution(options, activation, dtype):
    plain = nn.Conv2d(40, 40, **options)
    conv = FusedConv2d(copy.deepcopy(plain), activation).to(dtype)
    act = dict(none=lambda x: x, relu=F.relu, swish=F.silu)[activation]
    eps = torch.finfo(dtype).eps
    for size in [(5, 7), (1, 1), (60, 70), (5, 7)]:
        x = torch.randn(2, 40, *size)
        for memory in (x, x.to(memory_format=torch.channels_last), x.transpose(2, 3)):
            y = conv(memory.to(dtype)).float()
            torch.testing.assert_close(y, act(plain(memory)), rtol=8 * eps, atol=32 * eps)


@torch.no_grad()
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('size', [3, 50])
@pytest.mark.parametrize('options', [dict(kernel_size=1), dict(kernel_size=5, padding=2, groups=24)])
@pytest.mark.parametrize('compiled', [True, False])
def test_weights_that_change_between_calls(options, size, dtype, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(native, 'missing', lambda: 'not built')
    plain = nn.Conv2d(24, 24, **options).to(dtype)
    conv, x = FusedConv2d(copy.deepcopy(plain)), torch.randn(1, 24, size, size).to(dtype)
    before = conv(x)
    conv.weight.mul_(-2)
    changed = conv(x)
    bias = conv.bias.view(-1, 1, 1)
    torch.testing.assert_close(changed - bias, -2 * (before - bias), rtol=0.02, atol=0.05)
    others = {name: tensor.clone() for name, tensor in plain.named_parameters()}
    torch.testing.assert_close(torch.func.functional_call(conv, others, x), before)
    torch.testing.assert_close(conv(x), changed)
    for factor in (4, -1 / 8):  # the second may get the memory of what the first replaced
        conv.weight.data = factor * conv.weight.data
    torch.testing.assert_close(conv(x), before)


@torch.no_grad()
@pytest.mark.parametrize(
    'options',
    [
        dict(kernel_size=1, padding=1),
        dict(kernel_size=3, padding=0, groups=32),
        dict(kernel_size=5, padding=1, groups=32),
        dict(kernel_size=3, padding=1, dilation=2, groups=32),
        dict(kernel_size=3, padding=2, dilation=2),
        dict(kernel_size=(3, 5), padding=(1, 2), groups=32),
    ],
)
def test_other_geometries_are_kept(options):
    plain, x = nn.Conv2d(32, 32, **options), torch.randn(1, 32, 9, 8)
    torch.testing.assert_close(FusedConv2d(copy.deepcopy(plain))(x), plain(x), rtol=1e-4, atol=1e-5)
