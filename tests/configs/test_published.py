"""Every published config: built whole it is the authors' model, built small it trains and predicts."""

import copy
import json

import pytest
import torch
from cases import CASES
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData

from mmmobilemamba.backbones import MobileMamba
from mmmobilemamba.checkpoint import to_authors_layout
from mmmobilemamba.engine import load_config
from mmmobilemamba.engine.strict_load_hook import fit_state_dict


def build(cfg):
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model)


@pytest.fixture(scope='module', params=CASES, ids=lambda case: case.name)
def published(request):
    case = request.param
    cfg = load_config(str(case.file))
    return case, cfg, build(cfg)


@pytest.fixture(scope='module')
def stage3():
    """The stage that SSDLite does not use, in the authors' layout."""
    state = MobileMamba('b1').state_dict()
    layout = to_authors_layout(state)
    return {f'backbone.{k}': v for k, v in layout.items() if k.startswith('blocks3.')}


def constants(tensors):
    """The wavelet filters, which the authors count as parameters."""
    return sum(v.numel() for k, v in tensors.items() if k.endswith('wt_filter'))


def authors_state_dict(model):
    state = model.state_dict()
    own = {k.removeprefix('backbone.'): v for k, v in state.items() if k.startswith('backbone.')}
    rest = {k: v for k, v in state.items() if not k.startswith('backbone.')}
    return {**{f'backbone.{k}': v for k, v in to_authors_layout(own).items()}, **rest}


def test_parameters_are_those_of_the_authors(published, stage3):
    case, _, model = published
    count = sum(p.numel() for p in model.parameters()) + constants(authors_state_dict(model))
    if 'ssdlite' in case.name:
        buffers = ('running_mean', 'running_var', 'num_batches_tracked')
        count += sum(v.numel() for k, v in stage3.items() if not k.endswith(buffers))
    assert round(count / 1e6, 3) == case.parameters


def test_whole_checkpoint_in_the_authors_layout_fills_every_tensor(published, stage3):
    case, _, model = published
    given = authors_state_dict(model)
    given = {
        k: torch.rand_like(v) if v.is_floating_point() and 'wt_filter' not in k else v
        for k, v in given.items()
    }
    if 'ssdlite' in case.name:
        given |= stage3
    loaded = fit_state_dict(model, given)
    filled = copy.deepcopy(model)
    filled.load_state_dict(loaded, strict=True)
    again = authors_state_dict(filled)
    unused = set(given) - set(again)
    assert unused == (set(stage3) if 'ssdlite' in case.name else set())
    assert all(torch.equal(again[k], given[k]) for k in again)


def test_only_norms_are_free_of_weight_decay(published):
    case, cfg, model = published
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    optimizer = wrapper.optimizer
    assert isinstance(optimizer, torch.optim.AdamW)
    group = {id(p): g for g in optimizer.param_groups for p in g['params']}
    ten_fold = case.name == 'seg/semantic_fpn_mobilemamba'
    for name, parameter in model.named_parameters():
        settings = group[id(parameter)]
        assert settings['weight_decay'] == (0 if 'norm' in name else 0.05), name
        factor = 10 if ten_fold and 'head' in name else 1
        assert settings['lr'] == pytest.approx(cfg.optim_wrapper.optimizer.lr * factor), name
    clipping = None if ten_fold else dict(max_norm=0.1, norm_type=2)
    assert (wrapper.clip_grad_kwargs or None) == clipping


PUBLISHED_SCHEDULES = {
    # learning rate, epochs or iterations, warm-up, its first factor, batch of all GPUs, norm_eval
    'det/retinanet_mobilemamba': (2e-4, 12, 500, 1e-5, 16, True),
    'det/mask_rcnn_mobilemamba': (2e-4, 12, 500, 1e-5, 16, True),
    'det/ssdlite_mobilemamba': (2.4e-3, 120, 500, 1e-5, 192, True),
    'det/ssdlite_mobilemamba_512': (2.4e-3, 120, 500, 1e-5, 192, True),
    'seg/deeplabv3_mobilemamba': (1.2e-4, 80_000, 500, 1e-5, 32, False),
    'seg/pspnet_mobilemamba': (1.2e-4, 80_000, 500, 1e-5, 32, False),
    'seg/semantic_fpn_mobilemamba': (1.2e-4, 160_000, 1500, 1e-6, 32, False),
}


def test_settings_are_the_published_ones(published):
    case, cfg, model = published
    lr, length, warm_up, first, batch, norm_eval = PUBLISHED_SCHEDULES[case.name]
    linear, cosine = cfg.param_scheduler
    loop = cfg.train_cfg
    assert cfg.optim_wrapper.optimizer.lr == lr
    assert loop.get('max_epochs', loop.get('max_iters')) == length
    assert (linear.start_factor, linear.end, linear.by_epoch) == (first, warm_up, False)
    assert (cosine.begin, cosine.end, cosine.T_max) == (length // 2, length, length // 2)
    assert cosine.by_epoch == cosine.get('convert_to_iter_based', False) == ('max_epochs' in loop)
    gpus = 8 if 'ssdlite' in case.name else 4
    assert cfg.train_dataloader.batch_size * gpus == cfg.auto_scale_lr.base_batch_size == batch
    assert model.backbone.norm_eval is norm_eval
    if 'ssdlite' in case.name:
        assert cfg.train_dataloader.dataset.times == 5
    if cfg.default_scope == 'mmseg':
        assert cfg.model.data_preprocessor.size == (512, 512)
        assert cfg.model.test_cfg.mode == 'whole'
        assert isinstance(model.decode_head.norm_cfg, dict)
        assert model.decode_head.norm_cfg['type'] == 'SyncBN'


SIZE = (96, 128)  # of pictures


@pytest.fixture(scope='module', params=CASES, ids=lambda case: case.name)
def small(request):
    """The config switched to T2 as --arch does."""
    torch.manual_seed(0)
    cfg = load_config(str(request.param.file), arch='t2')
    cfg.model.backbone.norm_eval = False
    if cfg.default_scope == 'mmseg':  # or it would pad to 512x512
        cfg.model.data_preprocessor.size = SIZE
    # As the runner does for a single process.
    return cfg, revert_sync_batchnorm(build(cfg))


def sample(cfg, size):
    height, width = size
    meta = dict(
        img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0), batch_input_shape=size
    )
    if cfg.default_scope == 'mmseg':
        from mmseg.structures import SegDataSample

        labels = torch.randint(0, 150, (1, height, width))
        return SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=labels))
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    boxes = torch.tensor([[8.0, 8.0, 56.0, 64.0], [30.0, 10.0, 90.0, 80.0]])
    masks = torch.zeros(2, height, width, dtype=torch.uint8)
    masks[:, 16:56, 32:56] = 1
    instances = InstanceData(
        bboxes=boxes, labels=torch.tensor([3, 7]), masks=BitmapMasks(masks.numpy(), height, width)
    )
    return DetDataSample(metainfo=meta, gt_instances=instances)


def test_one_training_step_and_one_prediction(small):
    cfg, model = small
    data = dict(
        inputs=[torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8) for _ in range(2)],
        data_samples=[sample(cfg, SIZE) for _ in range(2)],
    )
    model.train()
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    inputs = model.data_preprocessor(data, training=True)
    loss, losses = model.parse_losses(model(**inputs, mode='loss'))
    assert all(torch.isfinite(v).all() for v in losses.values())
    loss.backward()
    gradients = {k: p.grad for k, p in model.named_parameters()}
    assert not [k for k, g in gradients.items() if g is None or not torch.isfinite(g).all()]
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    wrapper.step()
    changed = [k for k, p in model.named_parameters() if not torch.equal(p, before[k])]
    assert any(k.startswith('backbone.stem') for k in changed) and any('head' in k for k in changed)

    model.eval()
    with torch.no_grad():
        (result, _) = model.test_step(data)
    if cfg.default_scope == 'mmseg':
        assert result.pred_sem_seg.shape == SIZE
    else:
        assert torch.isfinite(result.pred_instances.bboxes).all()
        assert ('masks' in result.pred_instances) == ('mask' in str(cfg.filename))


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
def test_demo_has_the_same_model_in_small(case):
    real, demo = load_config(str(case.file), arch='t2'), load_config(str(case.demo))
    dataset = demo.train_dataloader.dataset
    assert not [t for t in dataset.get('dataset', dataset).pipeline if t.type == 'RandomFlip']
    real.model.backbone.norm_eval = demo.model.backbone.norm_eval = False
    for model in (real.model, demo.model):
        # How many proposals and samples there are belongs to the schedule.
        model.train_cfg = model.test_cfg = None
    assert json.dumps(demo.model) == json.dumps(real.model)


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.name)
def test_demo_is_guarded_without_a_change(case):
    hook = load_config(str(case.demo)).default_hooks.checkpoint
    assert hook.max_keep_ckpts == 2
