import pytest
import torch
import torch.nn.functional as F
from naive_ss2d import naive_scan
from tiny import as_trained

from mmmobilemamba.layers import MRFFI, SS2D, Downsample, MobileMambaBlock, split_channels


@pytest.mark.parametrize(
    'channels, ratios, expected',
    [
        (200, (0.8, 0.2), (160, 40, 0)),
        (376, (0.7, 0.2), (256, 75, 45)),
        (448, (0.6, 0.3), (272, 134, 42)),
        (144, (0.8, 0.2), (112, 28, 4)),
        (40, (0.6, 0.6), (32, 8, 0)),  # 24 lies between 16 and 32: a tie goes up; the local share is cut
    ],
)
def test_split_channels(channels, ratios, expected):
    assert split_channels(channels, *ratios) == expected


def test_split_channels_refuses_an_empty_global_branch():
    with pytest.raises(ValueError, match='global_ratio=0.1 of 48 channels rounds to 0'):
        split_channels(48, 0.1, 0.2)


@pytest.mark.parametrize('d_state', [1, 3])
@pytest.mark.parametrize('size', [(1, 1), (3, 5), (6, 4)])
def test_ss2d_equals_the_naive_recurrence(d_state, size):
    module = as_trained(SS2D(20, d_state=d_state)).double()
    x = torch.randn(2, 40, *size, dtype=torch.float64)
    torch.testing.assert_close(module._scan(x).double(), naive_scan(module, x), atol=1e-6, rtol=1e-6)


def test_ss2d_keeps_the_images_of_a_batch_apart():
    module = as_trained(SS2D(16))
    x = torch.randn(3, 16, 4, 5)
    torch.testing.assert_close(module(x), torch.cat([module(image[None]) for image in x]))


def test_mrffi_passes_the_identity_share_unchanged():
    module = as_trained(MRFFI(48, 3, 0.5, 0.25))
    assert module.splits == (32, 12, 4)
    x = torch.randn(1, 48, 4, 4)
    mixed = torch.cat((module.global_branch(x[:, :32]), module.local_branch(x[:, 32:44]), x[:, 44:]), 1)
    proj = module.proj
    expected = x + F.batch_norm(
        F.conv2d(F.relu(mixed), proj.conv.weight),
        proj.bn.running_mean,
        proj.bn.running_var,
        proj.bn.weight,
        proj.bn.bias,
    )
    torch.testing.assert_close(module(x), expected)


@pytest.mark.parametrize('ratios', [(0.5, 0.25), (0.75, 0.25), (0.5, 0), (1, 0)])
def test_mrffi_keeps_channels_last(ratios):
    """Whichever branches there are, forward and backward."""
    module = MRFFI(64, 3, *ratios)
    x = torch.randn(1, 64, 6, 4, requires_grad=True).to(memory_format=torch.channels_last)
    seen = []
    module.proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x.register_hook(seen.append)
    module(x).square().sum().backward()
    assert [t.is_contiguous(memory_format=torch.channels_last) for t in seen] == [True, True]


def test_a_new_block_is_twice_the_identity():
    """Every branch of a block starts at zero: the five inner skips give x, the outer one adds x."""
    block = MobileMambaBlock(32, kernel_size=3, global_ratio=0.5, local_ratio=0.25).eval()
    x = torch.randn(1, 32, 5, 4)
    torch.testing.assert_close(block(x), 2 * x)


def test_downsample_halves_rounding_up():
    assert Downsample(16, 24)(torch.randn(2, 16, 5, 8)).shape == (2, 24, 3, 4)
