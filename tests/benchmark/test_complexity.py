import pytest
import torch
from configs.cases import CONFIGS
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmmobilemamba import MobileMamba
from mmmobilemamba.benchmark import Complexity, measure_complexity
from mmmobilemamba.benchmark.complexity import haar_flops, scan_flops
from mmmobilemamba.deploy import switch_to_deploy
from mmmobilemamba.engine import load_config
from mmmobilemamba.layers import SS2D, WaveletConv
from mmmobilemamba.layers.block import SqueezeExcite
from mmmobilemamba.ops import available_backends

SMALL = dict(widths=(32, 48, 64), depths=(1, 1, 1))


def on_meta(model: nn.Module, height: int, width: int) -> Complexity:
    """Counts need shapes alone, which spares the arithmetic."""
    return measure_complexity(model.to('meta').eval(), torch.empty(1, 3, height, width, device='meta'))


def whole_model(name: str) -> nn.Module:
    cfg = load_config(str(CONFIGS / f'{name}.py'))
    init_default_scope(cfg.default_scope)
    return revert_sync_batchnorm(MODELS.build(cfg.model))


def projection_flops(height: int, width: int, indices: tuple[int, ...] = (0, 1, 2)) -> int:
    """Multiply-adds of the projections to Δ, B and C in a B1 whose image has stride 16 height × width."""
    channels, depths = (160, 256, 272), (2, 3, 2)
    total = 0
    for i in indices:
        pixels = -(-height // 2**i) * -(-width // 2**i)
        rank = -(-channels[i] // 16)
        total += depths[i] * pixels * 2 * (2 * channels[i]) * (2 * rank + 2)
    return total


def test_layers_counted_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False),
        nn.ConvTranspose2d(8, 4, 2, stride=2, bias=False),
        nn.Flatten(),
        nn.Linear(4 * 12 * 10, 7),
    ).eval()
    counted = measure_complexity(model, torch.rand(2, 3, 12, 10))
    pixels = 2 * 6 * 5
    assert counted.flops == pixels * (8 * 3 * 9 + 8 * 25 + 8 * 4 * 4) + 2 * 480 * 7
    assert counted.batch_norm_flops == pixels * 8
    assert counted.scan_flops == 0
    assert counted.parameters == 8 * 27 + 8 + 16 + 8 * 25 + 8 * 16 + 480 * 7 + 7


def test_scan_counted_by_hand():
    assert scan_flops(2, 10, 3, 4) == 9 * 2 * 10 * 3 * 4 + 2 * 3 * 10
    module = SS2D(32, d_state=3).eval()
    counted = measure_complexity(module, torch.rand(2, 32, 5, 7))
    pixels, inner, rank = 2 * 5 * 7, 64, 2
    assert counted.scan_flops == 2 * pixels * inner * (9 * 3 + 1)
    projections = 2 * inner * (rank + 2 * 3) + 2 * rank * inner
    assert counted.flops == pixels * (32 * 2 * inner + 9 * inner + projections + inner * 32)
    assert counted.total == counted.flops + counted.scan_flops


@pytest.mark.parametrize('size', [(8, 6), (7, 5)])
def test_haar_counts_as_the_convolutions_it_is(size):
    height, width = 8, 6
    counted = measure_complexity(WaveletConv(4, 3), torch.rand(2, 4, *size))
    bands = 2 * 16 * (height // 2) * (width // 2)
    assert counted.flops == bands * 9 + 2 * bands * 4
    # The filters of another wavelet of that length would run as convolutions, and be counted as such.
    assert haar_flops(2, 4, *size) == 2 * bands * 4


def test_haar_of_two_levels():
    assert haar_flops(1, 2, 8, 8, levels=2) == haar_flops(1, 2, 8, 8) + haar_flops(1, 2, 4, 4)


def test_every_backend_counts_alike():
    counts = {
        measure_complexity(MobileMamba(SMALL, scan_backend=name).eval(), torch.rand(1, 3, 64, 96))
        for name in available_backends()
        if name != 'mamba_ssm'
    }
    assert len(counts) == 1


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_folding_removes_batch_norms_alone(dtype):
    model = MobileMamba(SMALL).eval().to(dtype)
    image = torch.rand(2, 3, 64, 96, dtype=dtype)
    before = measure_complexity(model, image)
    switch_to_deploy(model)
    after = measure_complexity(model, image)
    assert (after.flops, after.scan_flops) == (before.flops, before.scan_flops)
    assert after.parameters < before.parameters
    assert before.batch_norm_flops > after.batch_norm_flops == 0


def test_another_callable_and_no_hooks_left():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    counted = measure_complexity(
        model, (torch.rand(1, 3, 4, 4),), forward=lambda x: model(model[0](x)[:, [0] * 3])
    )
    assert counted.flops == 2 * 16 * 3 * 2
    assert not any(module._forward_hooks for module in model)


@pytest.mark.parametrize(
    ('arch', 'size', 'published'),
    [
        ('t2', 192, 255),
        ('t4', 192, 413),
        ('s6', 224, 652),
        ('b1', 256, 1080),
        ('b2', 384, 2427),
        ('b4', 512, 4313),
    ],
)
def test_published_flops_of_classification(arch, size, published):
    """All six come out to the last digit with two heads and one operation per pooled element.

    That fits the networks as they are distilled, with a second head.
    """
    model = MobileMamba(arch)
    pooled = []
    for module in model.modules():
        if isinstance(module, SqueezeExcite):
            module.register_forward_hook(lambda _, args, __: pooled.append(args[0].numel()))
    counted = on_meta(model, size, size)
    heads = 2 * 1000 * model.out_channels[-1]
    millions = (counted.total + counted.batch_norm_flops + heads + sum(pooled)) / 1e6
    assert round(millions) == published


@pytest.mark.parametrize(
    ('name', 'listed'),
    [
        ('seg/deeplabv3_mobilemamba', 4.627e9),
        ('seg/pspnet_mobilemamba', 4.456e9),
        ('seg/semantic_fpn_mobilemamba', 5.564e9),
    ],
)
def test_listed_flops_of_segmentors(name, listed):
    """The count of mmengine.analysis for the authors' code, which leaves out what leads to the scan.

    It adds batch norms and a few million operations for pooling and resizing.
    """
    counted = on_meta(whole_model(name), 512, 512)
    assert counted.flops == pytest.approx(listed, rel=0.01)
    like_theirs = counted.flops - projection_flops(32, 32) + counted.batch_norm_flops
    assert like_theirs == pytest.approx(listed, rel=1e-3)


def test_listed_flops_of_retinanet():
    counted = on_meta(whole_model('det/retinanet_mobilemamba'), 800, 1280)
    assert int(counted.flops / 1e9) == 168


@pytest.fixture(scope='module')
def ssdlite() -> nn.Module:
    return whole_model('det/ssdlite_mobilemamba')


@pytest.mark.parametrize(('size', 'listed'), [(320, 1.711e9), (512, 4.374e9)])
def test_listed_flops_of_ssdlite(ssdlite, size, listed):
    """Their network runs stage 3, whose output is not used.

    What was counted fits a trace that ends with the last scan there and drops the unused rest.
    """
    counted = on_meta(ssdlite, size, size)
    stage3 = MobileMamba('b1').stage3.to('meta').eval()
    last = size // 32
    unused = measure_complexity(stage3, torch.empty(1, 376, last, last, device='meta'))
    pixels = (-(-last // 2)) ** 2
    width, scanned = 448, 272
    dropped = pixels * (2 * scanned * scanned + width * width + 9 * width + 2 * width * 2 * width)
    like_theirs = counted.flops + unused.flops + counted.batch_norm_flops + unused.batch_norm_flops
    like_theirs -= projection_flops(size // 16, size // 16) + dropped
    assert like_theirs == pytest.approx(listed, rel=1e-3)
