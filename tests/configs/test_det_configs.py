import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.optim import CosineAnnealingLR, LinearLR
from mmengine.registry import MODELS, init_default_scope
from tiny import REPOSITORY, as_trained

from mmmobilemamba.necks import EfficientViTFPN

CONFIGS = REPOSITORY / 'configs/det'


@pytest.fixture(scope='module')
def retinanet():
    cfg = Config.fromfile(CONFIGS / 'retinanet_mobilemamba.py')
    init_default_scope(cfg.default_scope)
    return cfg, MODELS.build(cfg.model)


def test_retinanet_levels_match_its_anchors(retinanet):
    _, model = retinanet
    assert isinstance(model.neck, EfficientViTFPN)
    model.eval()
    with torch.no_grad():
        levels = model.extract_feat(torch.zeros(1, 3, 256, 384))
    strides = [stride for stride, _ in model.bbox_head.prior_generator.strides]
    assert strides == [8, 16, 32, 64, 128]
    assert [tuple(x.shape[2:]) for x in levels] == [(256 // s, 384 // s) for s in strides]


def test_retinanet_keeps_batch_norm_of_the_backbone(retinanet):
    _, model = retinanet
    model.train()
    norms = [m for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms and not any(m.training for m in norms)


def test_roi_align_reads_the_features_of_its_place():
    """mmcv's operators take channels-last memory for the other and read pixels from anywhere."""
    cfg = Config.fromfile(CONFIGS / 'demo/mask_rcnn_mobilemamba_demo.py')
    init_default_scope(cfg.default_scope)
    model = as_trained(MODELS.build(cfg.model))
    rois = torch.tensor([[0, 10, 20, 40, 60], [1, 0, 0, 120, 90], [1, 30, 10, 60, 80]]).float()
    with torch.no_grad():
        features = model.extract_feat(torch.randn(2, 3, 96, 128))
    for extractor in (model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor):
        found = extractor(features[:4], rois)
        for roi, got in zip(rois, found, strict=True):
            level = extractor.map_roi_levels(roi[None], 4).item()
            expected = average(features[level][int(roi[0])], roi[1:] / 2 ** (level + 2), got)
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def average(image, box, like):
    """The mean over points of each cell of the box, bilinear between pixels: RoIAlign by its definition."""
    left, top, right, bottom = (box - 0.5).tolist()
    points, counts = [], []
    for low, high, cells in ((top, bottom, like.shape[1]), (left, right, like.shape[2])):
        counts.append(math.ceil((high - low) / cells))
        n = cells * counts[-1]
        points.append(low + (high - low) * (torch.arange(n) + 0.5) / n)
    h, w = image.shape[1:]
    y, x = torch.meshgrid(points[0].clamp(0, h - 1), points[1].clamp(0, w - 1), indexing='ij')
    grid = torch.stack((2 * x / (w - 1) - 1, 2 * y / (h - 1) - 1), -1)
    values = F.grid_sample(image[None], grid[None], align_corners=True)
    return F.avg_pool2d(values, counts)[0]


def test_learning_rate_follows_the_published_schedule(retinanet):
    cfg, _ = retinanet
    epoch_length = 100
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], cfg.optim_wrapper.optimizer.lr)
    warm_up, cosine = (dict(c) for c in cfg.param_scheduler)
    assert (warm_up.pop('type'), cosine.pop('type')) == ('LinearLR', 'CosineAnnealingLR')
    assert cosine.pop('convert_to_iter_based')
    schedulers = [
        LinearLR(optimizer, **warm_up),
        CosineAnnealingLR.build_iter_from_epoch(optimizer, **cosine, epoch_length=epoch_length),
    ]
    rates = []
    for _ in range(cfg.train_cfg.max_epochs * epoch_length):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    assert rates[0] == pytest.approx(2e-4 * 1e-5)
    assert rates[500:600] == pytest.approx([2e-4] * 100)
    assert rates[900] == pytest.approx(1e-4, rel=0.01)
    assert 0 < rates[-1] < 1e-8
