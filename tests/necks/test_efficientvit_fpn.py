import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS

from mmmobilemamba.necks import EfficientViTFPN


def naive_pyramid(state, inputs, num_outs, num_extra, extra_convs):
    """The neck written out with functional calls on its state dict."""

    def conv(x, name, padding=0, stride=1):
        weight, bias = state[f'{name}.conv.weight'], state[f'{name}.conv.bias']
        return F.conv2d(x, weight, bias, stride, padding)

    def nearest(x, height, width):
        rows = [r * x.shape[2] // height for r in range(height)]
        cols = [c * x.shape[3] // width for c in range(width)]
        return x[:, :, rows][:, :, :, cols]

    levels = [conv(x, f'lateral_convs.{i}') for i, x in enumerate(inputs)]
    for i in reversed(range(len(levels) - 1)):
        levels[i] = levels[i] + nearest(levels[i + 1], *levels[i].shape[2:])
    outs = [conv(x, f'fpn_convs.{i}', padding=1) for i, x in enumerate(levels)]
    finer = levels[0]
    for i in range(num_extra):
        name = f'extra_trans_convs.{i}.conv'
        finer = F.conv_transpose2d(finer, state[f'{name}.weight'], state[f'{name}.bias'], stride=2)
        outs = [conv(finer, f'extra_fpn_convs.{i}', padding=1), *outs]
    source = inputs[-1]
    for i in range(len(inputs), num_outs - num_extra):
        if extra_convs:
            source = conv(source, f'fpn_convs.{i}', padding=1, stride=2)
            outs.append(source)
        else:
            outs.append(outs[-1][:, :, ::2, ::2])
    return outs


@pytest.mark.parametrize('extra_convs', [False, 'on_input'])
@pytest.mark.parametrize('num_outs, num_extra', [(5, 1), (5, 2), (3, 0), (6, 1)])
@pytest.mark.parametrize(
    'sizes', [[(8, 12), (4, 6), (2, 3)], [(7, 5), (4, 3), (2, 2)], [(1, 1), (1, 1), (1, 1)]]
)
def test_equals_naive_pyramid(sizes, num_outs, num_extra, extra_convs):
    torch.manual_seed(0)
    channels = (6, 10, 14)
    neck = EfficientViTFPN(channels, 8, num_outs, num_extra, extra_convs).double()
    for parameter in neck.parameters():
        torch.nn.init.normal_(parameter)
    inputs = [torch.randn(2, c, *size, dtype=torch.double) for c, size in zip(channels, sizes, strict=True)]

    outs = neck(inputs)

    expected = naive_pyramid(neck.state_dict(), inputs, num_outs, num_extra, extra_convs)
    assert len(outs) == num_outs
    assert outs[0].shape[2:] == tuple(side * 2**num_extra for side in sizes[0])
    for out, reference in zip(outs, expected, strict=True):
        torch.testing.assert_close(out, reference, rtol=1e-12, atol=1e-12)


def test_built_by_name_with_the_published_key_names_and_size():
    cfg = dict(type='EfficientViTFPN', in_channels=[200, 376, 448], num_extra_trans_convs=2)
    neck = MODELS.build(cfg)

    shapes = {name: tuple(p.shape) for name, p in neck.named_parameters()}

    assert neck.num_outs == 5
    convs = {'lateral_convs': 3, 'fpn_convs': 3, 'extra_trans_convs': 2, 'extra_fpn_convs': 2}
    assert set(shapes) == {
        f'{name}.{i}.conv.{part}'
        for name, count in convs.items()
        for i in range(count)
        for part in ('weight', 'bias')
    }
    assert shapes['lateral_convs.1.conv.weight'] == (256, 376, 1, 1)
    assert shapes['extra_trans_convs.1.conv.weight'] == (256, 256, 2, 2)
    assert shapes['extra_fpn_convs.0.conv.weight'] == (256, 256, 3, 3)


def test_init_is_xavier_uniform_with_zero_bias():
    neck = EfficientViTFPN([32, 64, 96], 128)
    neck.init_weights()
    for name, module in neck.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            area = module.weight[0, 0].numel()
            bound = (6 / (area * (module.in_channels + module.out_channels))) ** 0.5
            largest = module.weight.abs().max().item()
            assert 0.95 * bound < largest <= bound, name
            assert not module.bias.any(), name


def test_every_parameter_gets_a_gradient():
    neck = EfficientViTFPN([4, 6, 8], 8, 6, num_extra_trans_convs=2, add_extra_convs='on_input')
    inputs = [torch.randn(1, c, s, s) for c, s in ((4, 5), (6, 3), (8, 2))]
    sum(out.square().sum() for out in neck(inputs)).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in neck.parameters())


@pytest.mark.parametrize(
    'kwargs, message',
    [
        (dict(in_channels=[]), 'in_channels=\\[\\]'),
        (dict(in_channels=200), 'in_channels=200'),
        (dict(in_channels=[200, 0]), 'in_channels=\\[200, 0\\]'),
        (dict(in_channels=[200], out_channels=0), 'out_channels=0'),
        (dict(in_channels=[8, 8], num_extra_trans_convs=-1), '0 or more'),
        (dict(in_channels=[8, 8, 8], num_outs=4, num_extra_trans_convs=2), 'num_outs=5 or more'),
        (dict(in_channels=[8], add_extra_convs='on_lateral'), "add_extra_convs='on_lateral'"),
    ],
)
def test_wrong_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        EfficientViTFPN(**kwargs)


@pytest.mark.parametrize('channels', [(4, 6), (4, 7, 8), (8, 6, 4)])
def test_wrong_inputs_name_the_right_channels(channels):
    neck = EfficientViTFPN([4, 6, 8], 8)
    inputs = [torch.zeros(1, c, 4, 4) for c in channels]
    with pytest.raises(ValueError, match=rf'Set in_channels=\[{", ".join(map(str, channels))}\]'):
        neck(inputs)
