import pytest
import torch
from mmengine.config import Config
from mmengine.optim import CosineAnnealingLR, LinearLR
from mmengine.registry import MODELS, init_default_scope
from tiny import REPOSITORY

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
