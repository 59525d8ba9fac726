from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseTTAModel
from mmengine.registry import HOOKS
from tiny import build_retinanet

import mmmobilemamba.checkpoint as checkpoints
from mmmobilemamba.checkpoint import CheckpointError, to_authors_layout
from mmmobilemamba.engine.strict_load_hook import StrictLoadHook, fit_state_dict


@pytest.fixture(scope='module')
def detector():
    return build_retinanet()


@pytest.fixture
def weights(detector):
    return {key: torch.rand_like(v, dtype=torch.float) for key, v in detector.state_dict().items()}


def in_authors_layout(weights):
    backbone = {k[9:]: v for k, v in weights.items() if k.startswith('backbone.')}
    rest = {k: v for k, v in weights.items() if not k.startswith('backbone.')}
    return {**rest, **{f'backbone.{k}': v for k, v in to_authors_layout(backbone).items()}}


def assert_same(given, expected):
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[key], expected[key]) for key in expected)


class TestFit:
    def test_exact_weights_stay_as_they_are(self, detector, weights):
        assert_same(fit_state_dict(detector, weights), weights)

    def test_authors_layout_is_converted(self, detector, weights):
        theirs = in_authors_layout(weights)
        assert not theirs.keys() <= weights.keys()
        assert_same(fit_state_dict(detector, theirs), weights)

    def test_stages_that_are_not_built_are_dropped(self, weights):
        small = build_retinanet(out_indices=(1, 2))
        expected = {k: weights[k] for k in small.state_dict()}
        # A detector on two stages has no third lateral either.
        theirs = in_authors_layout({k: v for k, v in weights.items() if 'convs.2' not in k})
        assert any('blocks3' in key for key in theirs)
        assert_same(fit_state_dict(small, theirs), expected)

    @pytest.mark.parametrize(
        'key', ['backbone.stem.0.conv.weight', 'neck.fpn_convs.1.conv.bias', 'bbox_head.retina_reg.bias']
    )
    def test_missing_key_is_named(self, detector, weights, key):
        del weights[key]
        with pytest.raises(CheckpointError, match=rf'(?s)not in the checkpoint.*{key[9:]}'):
            fit_state_dict(detector, weights)

    @pytest.mark.parametrize('key', ['neck.more.weight', 'backbone.more.weight'])
    def test_unused_key_is_named(self, detector, weights, key):
        weights[key] = torch.zeros(1)
        with pytest.raises(CheckpointError, match='(?s)not in the model.*more.weight'):
            fit_state_dict(detector, weights)

    def test_backbone_alone_is_refused(self, detector, weights):
        backbone = {k[9:]: v for k, v in in_authors_layout(weights).items() if 'backbone.' in k}
        with pytest.raises(CheckpointError, match='init_cfg'):
            fit_state_dict(detector, backbone)

    def test_other_classes_are_refused_with_the_way_out(self, weights):
        model = build_retinanet(num_classes=5)
        with pytest.raises(CheckpointError, match='--reinit bbox_head.retina_cls$'):
            fit_state_dict(model, weights, reinit=())
        # Testing and resuming have no --reinit.
        with pytest.raises(CheckpointError, match=r'data with its classes \(--data-root\)') as caught:
            fit_state_dict(model, weights)
        assert 'reinit' not in str(caught.value)


class TestReinit:
    def test_layers_keep_their_values(self, weights):
        model = build_retinanet(num_classes=5)
        fitted = fit_state_dict(model, weights, ['bbox_head.retina_cls'])
        own = model.state_dict()
        kept = {'bbox_head.retina_cls.weight', 'bbox_head.retina_cls.bias'}
        assert_same(fitted, {k: own[k] if k in kept else weights[k] for k in own})

    def test_whole_backbone(self, detector, weights):
        head = {k: v for k, v in weights.items() if not k.startswith('backbone.')}
        fitted = fit_state_dict(detector, head, ['backbone'])
        own = detector.state_dict()
        assert_same(fitted, {k: head.get(k, own[k]) for k in own})

    @pytest.mark.parametrize('start', ['backbone.stem', 'backbone.stage3.blocks.0', 'backbone.stage2.'])
    @pytest.mark.parametrize('layout', [dict, in_authors_layout])
    def test_part_of_the_backbone(self, detector, weights, start, layout):
        fitted = fit_state_dict(detector, layout(weights), [start])
        own = detector.state_dict()
        assert_same(fitted, {k: own[k] if k.startswith(start) else weights[k] for k in own})

    def test_part_of_the_backbone_of_another_shape(self, weights):
        model = build_retinanet(in_channels=4)
        fitted = fit_state_dict(model, in_authors_layout(weights), ['backbone.stem.0'])
        own = model.state_dict()
        assert_same(fitted, {k: own[k] if k.startswith('backbone.stem.0') else weights[k] for k in own})

    def test_unknown_name_is_refused(self, detector, weights):
        with pytest.raises(CheckpointError, match="'bbox_head.class'.*bbox_head.retina_cls"):
            fit_state_dict(detector, weights, ['bbox_head.retina_cls', 'bbox_head.class'])


def run_of(model, classes=('a', 'b', 'c')):
    return SimpleNamespace(model=model, visualizer=SimpleNamespace(dataset_meta=dict(classes=classes)))


class TestHook:
    class Augmented(BaseTTAModel):
        def merge_preds(self, data_samples_list):
            raise NotImplementedError

    @pytest.mark.parametrize('container', ['state_dict', 'net_E', None])
    def test_checkpoint_of_any_form(self, detector, weights, container):
        stored = {f'module.{key}': value for key, value in in_authors_layout(weights).items()}
        checkpoint = {container: stored} if container else stored
        hook = HOOKS.build(dict(type='StrictLoadHook'))
        hook.after_load_checkpoint(run_of(detector), checkpoint)
        assert_same(checkpoint['state_dict'], weights)

    def test_wrapped_model(self, detector, weights):
        checkpoint = dict(state_dict=weights)
        model = self.Augmented(module=detector)
        StrictLoadHook().after_load_checkpoint(run_of(model), checkpoint)
        assert_same(checkpoint['state_dict'], weights)

    @pytest.mark.parametrize('key', ['classes', 'CLASSES'])
    def test_classes_in_another_order_are_refused(self, detector, weights, key):
        checkpoint = dict(state_dict=weights, meta=dict(dataset_meta={key: ('a', 'c', 'b')}))
        with pytest.raises(CheckpointError, match="Class 1 .* is 'c', class 1 of the data is 'b'.*a, c, b"):
            StrictLoadHook().after_load_checkpoint(run_of(detector), checkpoint)
        # Trained anew, the layers may mean anything.
        StrictLoadHook(reinit=['bbox_head.retina_cls']).after_load_checkpoint(run_of(detector), checkpoint)

    def test_classes_of_other_names_are_told_of(self, detector, weights, monkeypatch):
        log = []
        monkeypatch.setattr(checkpoints, 'print_log', lambda text, **options: log.append(text))
        for names in (('a', 'b', 'c'), ('a', 'B', 'c')):
            checkpoint = dict(state_dict=weights, meta=dict(dataset_meta=dict(classes=names)))
            StrictLoadHook().after_load_checkpoint(run_of(detector), checkpoint)
        (said,) = log
        assert '1 classes have other names' in said and "'B' is now 'b'" in said

    def test_runs_before_the_average_is_loaded(self):
        ema = HOOKS.build(dict(type='EMAHook'))
        assert StrictLoadHook.priority == 'VERY_HIGH' and ema.priority != 'VERY_HIGH'
