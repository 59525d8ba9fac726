"""The operator for the folded stem against the layers that it stands for."""

import copy
from types import SimpleNamespace

import pytest
import torch
from tiny import as_trained

from mmmobilemamba.deploy import fuse_children
from mmmobilemamba.layers.stem import FoldedStem, Stem
from mmmobilemamba.ops import native

pytestmark = pytest.mark.usefixtures('no_grad')

SIZES = [(1, 1, 1), (1, 2, 3), (3, 5, 7), (2, 16, 17), (1, 33, 64), (1, 64, 33), (2, 47, 130)]


def folded(channels: int = 128, in_channels: int = 3) -> FoldedStem:
    torch.manual_seed(0)
    stem = as_trained(Stem(in_channels, channels)).eval()
    fuse_children(stem)
    return stem.fuse()


def called(stem: FoldedStem, x: torch.Tensor) -> bool:
    """Whether the operator computed, and not the layers."""
    with torch.profiler.profile() as profiler:
        stem(x)
    return any(e.name == 'mmmobilemamba::stem' for e in profiler.events())


def check(stem: FoldedStem, x: torch.Tensor) -> None:
    with native.avoided():
        expected = copy.deepcopy(stem).double()(x.double())
    limit = 1e-5 * max(1.0, expected.abs().max().item())
    torch.testing.assert_close(stem(x).double(), expected, rtol=0, atol=limit)


# 128 to 256 channels have 16 to 32 in the first map: one vector, parts of a second, two.
@pytest.mark.parametrize('channels', [128, 144, 200, 256, 320])
@pytest.mark.parametrize('in_channels', [1, 3, 5])
@pytest.mark.kernels
def test_equals_its_layers(built, channels, in_channels):
    stem = folded(channels, in_channels)
    for batch, *size in SIZES:
        x = torch.randn(batch, in_channels, *size)
        for image in (
            x,
            x.to(memory_format=torch.channels_last),
            x.flip(3).transpose(2, 3),
            x[:1].expand_as(x),
        ):
            check(stem, image)
        assert stem(x).is_contiguous(memory_format=torch.channels_last)


def test_runs_by_the_operator_where_there_is_one(built):
    x = torch.randn(1, 3, 20, 20)
    assert called(folded(), x)
    for stem in (folded(64), folded().double(), folded().bfloat16()):  # 64: a first map of 8 channels
        image = x.to(next(stem.parameters()).dtype)
        assert not called(stem, image)
        assert stem(image).dtype == image.dtype
    check(folded(64), x)


@pytest.mark.kernels
def test_several_threads_give_the_same(built, set_num_threads):
    stem = folded(200)
    for size in ((1, 70, 50), (3, 33, 20), (1, 9, 9)):
        x, results = torch.randn(size[0], 3, *size[1:]), []
        for count in (1, 2, 5):
            set_num_threads(count)
            results.append(stem(x))
        assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.kernels
def test_what_is_not_finite_stays_where_it_is_seen(built):
    """Zeros beyond the borders and between the maps of several images must not meet it."""
    stem, x = folded(), torch.randn(2, 3, 64, 64)
    expected = stem(x)
    x[1] = float('inf')
    x[0, :, -1, -1] = float('nan')  # seen by the last pixel alone
    y = stem(x)
    assert torch.equal(y[0, :, :-1], expected[0, :, :-1]) and y[0, :, -1, -1].isnan().all()


def test_weights_that_change_between_calls():
    stem, x = folded(), torch.randn(1, 3, 20, 20)
    stem(x)
    for name, weight in stem.named_parameters():
        weight.mul_(1.5)
        with native.avoided():
            expected = stem(x)
        torch.testing.assert_close(stem(x), expected, rtol=1e-4, atol=1e-4, msg=name)


def test_what_does_not_fit_is_refused(built):
    recorded, x = [], torch.randn(1, 3, 20, 20)
    folded().add_to(SimpleNamespace(stem=lambda *args: recorded.extend(args)))
    in_channels, weights = recorded

    def run(channels, weights, x):
        layers = torch.classes.mmmobilemamba.Layers()
        layers.stem(channels, weights)
        return layers.run(x)

    for wrong in (x[0], x.double(), x[:, :, :0], x[:, :2]):
        with pytest.raises(RuntimeError, match=r'stem: expected images \(B, 3, H, W\)'):
            run(in_channels, weights, wrong)
    with pytest.raises(RuntimeError, match='do not fit to 18 inputs'):
        run(2, weights, x)
    for wrong in ([], weights[:3]):
        with pytest.raises(RuntimeError, match='stem: expected weights and a bias'):
            run(in_channels, wrong, x)
    with pytest.raises(RuntimeError, match='do not fit'):
        run(in_channels, weights[2:], x)
