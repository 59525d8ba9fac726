"""The operators for folded blocks against the layers that they stand for."""

import copy
import os
import subprocess
import sys
import threading
import time

import pytest
import torch
from tiny import FOLDABLE, REPOSITORY, as_trained, folded_modules

from mmmobilemamba import MobileMamba
from mmmobilemamba.layers.block import FoldedBlock, FoldedDownsample
from mmmobilemamba.layers.compiled import CompiledModule
from mmmobilemamba.ops import native

pytestmark = [pytest.mark.usefixtures('built'), pytest.mark.usefixtures('no_grad')]

SMALL = dict(FOLDABLE, depths=[1, 1, 1])
SIZES = [(1, 1, 1), (3, 2, 5), (1, 7, 7), (2, 16, 9), (1, 20, 31)]


def folded(arch=SMALL, dtype=torch.float32, **options) -> list[CompiledModule]:
    """Blocks and down-samplings."""
    return folded_modules(FoldedBlock | FoldedDownsample, arch, dtype, **options)


def channels(module: CompiledModule) -> int:
    return module.dw_in.in_channels


def by_layers(module: CompiledModule, x: torch.Tensor) -> torch.Tensor:
    with native.avoided():
        return module(x)


def called(module: CompiledModule, x: torch.Tensor) -> bool:
    """Whether the operator computed, and not the layers."""
    with torch.profiler.profile() as profiler:
        module(x)
    return any(e.name in ('mmmobilemamba::block', 'mmmobilemamba::downsample') for e in profiler.events())


@pytest.mark.parametrize('arch', [SMALL, dict(SMALL, d_state=3, kernel_sizes=[3, 3, 5]), 'b1'])
@pytest.mark.kernels
def test_float32(arch):
    for module in folded(arch):
        assert called(module, torch.randn(1, channels(module), 4, 4))
        reference = copy.deepcopy(module).double()
        for batch, *size in SIZES:
            x = torch.randn(batch, channels(module), *size)
            expected = reference(x.double())
            limit = 1e-5 * expected.std().item()
            for memory in (
                x,
                x.to(memory_format=torch.channels_last),
                x.transpose(2, 3).clone().transpose(2, 3),
            ):
                torch.testing.assert_close(module(memory).double(), expected, rtol=0, atol=limit)


@pytest.mark.parametrize('arch', [SMALL, 'b1'])
@pytest.mark.parametrize('onednn', [True, False])  # which computes the products where there is AMX
@pytest.mark.kernels
def test_bfloat16_is_as_near_as_the_layers_are(arch, onednn):
    for exact, module in zip(folded(arch), folded(arch, torch.bfloat16), strict=True):
        exact.load_state_dict(module.state_dict())
        for batch, *size in SIZES:
            x = torch.randn(batch, channels(module), *size).bfloat16()
            expected = exact(x.float())
            with torch.backends.mkldnn.flags(enabled=onednn):
                assert called(module, x)
                y = module(x)
            assert y.dtype == torch.bfloat16
            error, allowed = ((z - expected).square().mean().sqrt() for z in (y, by_layers(module, x)))
            assert error <= 1.1 * allowed + 1e-3


@pytest.mark.kernels
def test_odd_channels_in_bfloat16():
    module = folded(dict(SMALL, widths=[32, 89, 113]), torch.bfloat16)[2]
    x = torch.randn(1, 89, 9, 9).bfloat16()
    assert called(module, x)
    torch.testing.assert_close(module(x), by_layers(module, x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.kernels
def test_several_threads_give_the_same(dtype, set_num_threads):
    # Few pixels, which share out the columns of the products, and many, which are shared out.
    for module in folded('t2', dtype)[:3]:
        for size in (3, 24):
            x, results = torch.randn(2, channels(module), size, size).to(dtype), []
            for count in (1, 2, 5):
                set_num_threads(count)
                results.append(module(x))
            assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.kernels
def test_rows_that_are_not_finite_stay_apart():
    """Zeros that fill up vectors must not meet them."""
    module = folded()[0]
    x = torch.randn(2, channels(module), 5, 5)
    expected = module(x)[0]
    x[1] = float('nan')
    y = module(x)
    assert torch.equal(y[0], expected)
    assert y[1].isnan().all()


@pytest.mark.parametrize(
    'options',
    [
        dict(arch=dict(SMALL, wavelet='db2')),
        dict(arch=dict(SMALL, wavelet_levels=2)),
        dict(arch=dict(SMALL, widths=[40, 88, 112], global_ratios=[0.8, 0.7, 0.6], local_ratios=[0.2] * 3)),
        dict(arch=dict(SMALL, kernel_sizes=[9, 5, 3])),
        dict(arch=dict(SMALL, kernel_sizes=[1, 5, 3])),
        dict(scan_backend='torch'),
        dict(scan_backend='reference'),
    ],
)
def test_what_has_no_operator_runs_by_its_layers(options):
    module = next(m for m in folded(**options) if isinstance(m, FoldedBlock))
    x = torch.randn(1, channels(module), 6, 6)
    assert not called(module, x)
    torch.testing.assert_close(module(x), by_layers(module, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('kind', [FoldedBlock, FoldedDownsample])
def test_weights_that_change_between_calls(kind):
    module = next(m for m in folded() if isinstance(m, kind))
    x = torch.randn(1, channels(module), 6, 6)
    before = module(x)
    names = [name for name, _ in module.named_parameters()]
    for name in names:
        weight = module.get_parameter(name)
        kept = weight.clone()
        weight.mul_(1.5)
        torch.testing.assert_close(module(x), by_layers(module, x), rtol=1e-4, atol=1e-4)
        weight.copy_(kept)
    others = {name: 0.7 * p for name, p in module.named_parameters()}
    replaced = torch.func.functional_call(module, others, x)
    module_ = copy.deepcopy(module)
    module_.load_state_dict(others)
    torch.testing.assert_close(replaced, by_layers(module_, x), rtol=1e-4, atol=1e-4)
    assert torch.equal(module(x), before)
    assert module.bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    assert module.double()(x.double()).dtype == torch.float64


def test_weights_at_the_address_of_those_before():
    """Of tensors that lived for one call, as functional_call has them."""
    module = folded()[0]
    x, weight = torch.randn(1, channels(module), 6, 6), module.mixer.proj.weight.clone()
    for factor in range(1, 6):
        others = {'mixer.proj.weight': factor * weight}
        y = torch.func.functional_call(module, others, x)
        with native.avoided():
            expected = torch.func.functional_call(module, others, x)
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
        del others


def test_data_that_comes_to_lie_where_older_data_lay():
    module = folded()[0]
    x, weight = torch.randn(1, channels(module), 6, 6), module.mixer.proj.weight
    for _ in range(5):
        module(x)
        for factor in (0.5, 3.0):  # the second may get the memory of what the first replaced
            weight.data = factor * weight.data
        torch.testing.assert_close(module(x), by_layers(module, x), rtol=1e-4, atol=1e-4)


def test_layers_and_settings_that_are_replaced():
    module, other = folded()[0], folded()[0]
    x = torch.randn(1, channels(module), 6, 6)
    for p in other.parameters():
        p.mul_(1.5)
    for _ in range(3):
        module(x)
    module.ffn_in.expand = other.ffn_in.expand
    torch.testing.assert_close(module(x), by_layers(module, x), rtol=1e-4, atol=1e-4)
    module.mixer = other.mixer
    torch.testing.assert_close(module(x), by_layers(module, x), rtol=1e-4, atol=1e-4)
    module.mixer.global_branch.ss2d.out_norm.eps = 0.5
    torch.testing.assert_close(module(x), by_layers(module, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_settings_of_torch(dtype, monkeypatch):
    module = folded(dtype=dtype)[0]
    x = torch.randn(1, channels(module), 6, 6).to(dtype)
    expected = copy.deepcopy(module)(x)
    torch.set_default_dtype(torch.float64)
    try:
        torch.testing.assert_close(module(x), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device('meta'):
        assert copy.deepcopy(module)(x).device.type == 'cpu'
    with torch.backends.mkldnn.flags(enabled=False):
        torch.testing.assert_close(module(x), expected, rtol=0.02, atol=0.02)
    torch.testing.assert_close(module(x), expected)


def test_other_threads_may_drop_what_is_packed(set_num_threads):
    set_num_threads(1)
    module, failures = folded()[0], []
    x = torch.randn(1, channels(module), 4, 4)

    def call():
        try:
            with torch.no_grad():
                for _ in range(100):
                    module(x)
        except Exception as err:
            failures.append(err)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        module._forget()
        time.sleep(1e-4)  # else the threads hardly get a turn
    assert not failures


def test_maps_without_pixels_are_refused():
    for module in folded()[:2]:
        for size in ((4, 0), (0, 4)):
            with pytest.raises(RuntimeError, match='folded: expected maps of at least one pixel'):
                module(torch.randn(1, channels(module), *size))


def test_empty_batches():
    with torch.no_grad():
        for module in folded()[:2]:
            assert module(torch.randn(0, channels(module), 8, 8)).shape[0] == 0


def test_copy_on_write_inputs(set_num_threads):
    set_num_threads(2)
    module = folded()[0]
    x = torch.randn(1, channels(module), 40, 40).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(module(torch._lazy_clone(x)), module(x))


@pytest.mark.parametrize('images', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('compiled', [True, False])
def test_autocast_of_a_folded_network(monkeypatch, images, dtype, compiled):
    model = as_trained(MobileMamba('t2'))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        exact = model(x)
    model.switch_to_deploy()
    if not compiled:
        monkeypatch.setattr(native, 'missing', lambda: 'for this test')
    with torch.no_grad(), torch.autocast('cpu', dtype):
        for y, z in zip(model(x.to(images)), exact, strict=True):
            assert y.dtype == dtype
            assert (y - z).std() <= 0.05 * z.std()


def test_inference_mode():
    with torch.inference_mode():
        module = folded()[0]
        x = torch.randn(1, channels(module), 6, 6)
        torch.testing.assert_close(module(x), by_layers(module, x), rtol=1e-4, atol=1e-4)


class Recorded:
    """Takes what a module adds to the layers of the compiled library."""

    def block(self, *args):
        self.added = 'block', *args

    def downsample(self, *args):
        self.added = 'downsample', *args


@pytest.mark.parametrize('kind', [FoldedBlock, FoldedDownsample])
def test_what_does_not_fit_is_refused(kind):
    module = next(m for m in folded() if isinstance(m, kind))
    recorded = Recorded()
    module.add_to(recorded)
    name, weights, *settings = recorded.added
    x = torch.randn(1, channels(module), 4, 4)

    def run(weights, x):
        layers = torch.classes.mmmobilemamba.Layers()
        getattr(layers, name)(weights, *settings)
        return layers.run(x)

    for wrong in (x[0], x.double(), x[:, :-1]):
        with pytest.raises(RuntimeError, match='folded: expected'):
            run(weights, wrong)
    for i in range(len(weights)):
        for wrong in (weights[i].double(), weights[i].flatten()[:-1]):
            with pytest.raises((RuntimeError, IndexError)):
                run(weights[:i] + [wrong] + weights[i + 1 :], x)
    with pytest.raises(RuntimeError, match='folded: too few weights'):
        run(weights[:5], x)
    with pytest.raises(RuntimeError, match='folded: '):
        run(weights + weights[-3:], x)


@pytest.mark.parametrize('capability', ['avx512', 'avx2', 'default'])
def test_other_instruction_sets(capability):
    """The numbers of all operators, by the kernels for other processors."""
    command = (sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider')
    run = subprocess.run(
        # The layers of b1 are the same, only wider.
        [*command, '-m', 'kernels', '-k', 'not b1', 'tests/layers', 'tests/ops'],
        cwd=REPOSITORY,
        env=dict(os.environ, ATEN_CPU_CAPABILITY=capability, OMP_NUM_THREADS='1'),
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-3000:]
