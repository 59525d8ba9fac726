"""A folded stage, computed as one, against its blocks one by one."""

import copy
from functools import partial

import pytest
import torch
from tiny import FOLDABLE, TINY, as_trained, folded_modules

from mmmobilemamba import MobileMamba
from mmmobilemamba.layers.stage import FoldedStage
from mmmobilemamba.ops import native

pytestmark = pytest.mark.usefixtures('no_grad')

CHANNELS = 32, 32, 88  # that the stages take
folded = partial(folded_modules, FoldedStage)


def by_blocks(stage: FoldedStage, x: torch.Tensor) -> torch.Tensor:
    return stage.blocks(stage.downsample(x))


def calls_of_blocks(stage: FoldedStage, x: torch.Tensor) -> int:
    """How many blocks are called as modules."""
    calls = []
    for block in stage.blocks:
        forward = block.forward
        block.forward = lambda x, forward=forward: calls.append(x) or forward(x)
    stage(x)
    for block in stage.blocks:
        del block.forward
    return len(calls)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('size', [(1, 1, 1), (2, 5, 7), (1, 16, 17)])
@pytest.mark.kernels
def test_one_by_one_is_the_same(dtype, size, built):
    batch, *size = size
    for stage, channels in zip(folded(dtype=dtype), CHANNELS, strict=True):
        x = torch.randn(batch, channels, *size).to(dtype)
        assert calls_of_blocks(stage, x) == 0
        assert torch.equal(stage(x), by_blocks(stage, x))


def test_memory_that_blocks_share_is_large_enough_for_wider_ones(built):
    stage, wider, _ = folded()
    stage.blocks.append(wider.downsample)
    stage.blocks.append(wider.blocks[0])
    # Maps of one pixel do not get smaller while they get wider; those of 400x400 take more than what is kept.
    for batch, size in ((1, 33), (64, 1), (1, 400), (1, 5)):
        x = torch.randn(batch, CHANNELS[0], size, size)
        assert calls_of_blocks(stage, x) == 0
        assert torch.equal(stage(x), by_blocks(stage, x))


def test_block_that_raises_leaves_the_others_right(built):
    stage, wider, _ = folded()
    x = torch.randn(1, CHANNELS[0], 9, 9)
    expected = stage(x)
    stage.blocks.append(wider.blocks[0])
    with pytest.raises(RuntimeError, match='expected maps of 88 channels'):
        stage(x)
    del stage.blocks[-1]
    assert torch.equal(stage(x), expected)


@pytest.mark.parametrize('size', [8, 32])  # computed in one strip, and in one for each thread
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.kernels
def test_nothing_is_left_of_earlier_numbers(dtype, size):
    inputs = [torch.randn(1, channels, size, size).to(dtype) for channels in CHANNELS]
    stages = folded(dtype=dtype)
    expected = [stage(x) for stage, x in zip(stages, inputs, strict=True)]
    for stage, x in zip(stages, inputs, strict=True):
        assert stage(torch.full_like(x, float('nan'))).isnan().all()
        for other, y, clean in zip(stages, inputs, expected, strict=True):
            assert torch.equal(other(y), clean)


def test_blocks_that_are_hooked_are_called():
    for stage, channels in zip(folded(), CHANNELS, strict=True):
        x, seen = torch.randn(1, channels, 6, 6), []
        expected = stage(x)
        hook = stage.blocks[-1].register_forward_hook(lambda module, args, y, seen=seen: seen.append(y))
        torch.testing.assert_close(stage(x), expected)
        assert torch.equal(seen[0], expected)
        hook.remove()
        hook = stage.downsample.register_forward_pre_hook(lambda module, args: (2 * args[0],))
        torch.testing.assert_close(stage(x), by_blocks(stage, x))
        hook.remove()
        assert torch.equal(stage(x), expected)


def test_hooks_from_before_folding_are_kept():
    model, calls = as_trained(MobileMamba(FOLDABLE)), []
    handle = model.stage2.register_forward_hook(lambda module, args, y: calls.append('stage'))
    model.stage2.blocks[0].register_forward_hook(lambda module, args, y: calls.append('block'))
    model.switch_to_deploy()
    model(torch.randn(1, 3, 64, 64))
    assert calls == ['block', 'stage']
    handle.remove()
    model(torch.randn(1, 3, 64, 64))
    assert calls == ['block', 'stage', 'block']


@pytest.mark.parametrize('grad', [True, False])
def test_tracing(built, grad):
    """The check of torch.jit.trace is without gradients, whatever the trace was."""
    stage = folded()[0]
    x = torch.randn(1, CHANNELS[0], 6, 6)
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(stage, x)
    torch.testing.assert_close(traced(2 * x), stage(2 * x), rtol=1e-4, atol=1e-4)


def test_block_that_was_traced(built):
    stage = folded()[0]
    x = torch.randn(1, CHANNELS[0], 6, 6)
    expected = stage(x)
    stage.blocks[0] = torch.jit.trace(stage.blocks[0], x)
    torch.testing.assert_close(stage(x), expected, rtol=1e-4, atol=1e-4)


def test_weights_and_blocks_that_change_between_calls():
    stage = folded()[2]
    x = torch.randn(1, CHANNELS[2], 6, 6)
    stage(x)
    for name in ('blocks.1.mixer.proj.weight', 'downsample.merge.project.bias'):
        stage.get_parameter(name).mul_(1.5)
        torch.testing.assert_close(stage(x), by_blocks(stage, x))
    stage.blocks[0] = copy.deepcopy(stage.blocks[1])
    torch.testing.assert_close(stage(x), by_blocks(stage, x))
    stage.blocks.append(copy.deepcopy(stage.blocks[0]))
    torch.testing.assert_close(stage(x), by_blocks(stage, x))
    stage.blocks[1].mixer.global_branch.ss2d.out_norm.eps = 0.5
    torch.testing.assert_close(stage(x), by_blocks(stage, x))
    stage.blocks[0].double()
    with pytest.raises(RuntimeError):
        stage(x)
    assert stage.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize(
    'options', [dict(arch=dict(FOLDABLE, wavelet='db2')), dict(arch=FOLDABLE, scan_backend='torch')]
)
def test_blocks_without_compiled_ones_are_called(options):
    stage = folded(**options)[0]
    x = torch.randn(1, CHANNELS[0], 6, 6)
    assert calls_of_blocks(stage, x) == len(stage.blocks)
    with native.avoided():
        expected = stage(x)
    torch.testing.assert_close(stage(x), expected, rtol=1e-4, atol=1e-4)


def test_block_of_someone_else(built):
    stage = folded()[0]
    stage.blocks[0] = torch.nn.Conv2d(CHANNELS[0], CHANNELS[0], 1)
    x = torch.randn(1, CHANNELS[0], 6, 6)
    assert calls_of_blocks(stage, x) == 2
    assert torch.equal(stage(x), by_blocks(stage, x))


def test_checkpointing_in_torch_compile():
    """Gradients and BN statistics, for compiled graphs take no notice of the contexts of checkpointing."""
    torch.manual_seed(0)
    stage = as_trained(MobileMamba(TINY, with_cp=True)).train().stages[1].double()
    x = torch.randn(2, TINY['widths'][0], 8, 6, dtype=torch.float64)
    results = []
    with torch.enable_grad():
        for compiled in (False, True):
            model = copy.deepcopy(stage)
            run = torch.compile(model, fullgraph=True, backend='aot_eager') if compiled else model
            run(x).square().mean().backward()
            results.append(({n: p.grad for n, p in model.named_parameters()}, model.state_dict()))
    for expected, found in zip(*results, strict=True):
        for name in expected:
            torch.testing.assert_close(found[name], expected[name])
