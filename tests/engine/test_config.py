from contextlib import nullcontext
from pathlib import Path

import pytest
from matplotlib import pyplot
from mmengine.config import Config
from mmengine.optim import OptimWrapper

from mmmobilemamba import engine
from mmmobilemamba.datasets import retarget
from mmmobilemamba.engine import config as config_module
from mmmobilemamba.engine import options as options_module
from mmmobilemamba.errors import UserError


def simple_config(scope: str = 'mmdet', **options) -> Config:
    loader = dict(num_workers=2, persistent_workers=True, dataset=dict(dataset=dict(pipeline=[])))
    return Config(
        dict(
            default_scope=scope,
            model=dict(type='Model'),
            default_hooks=dict(
                visualization=dict(type='VisualizationHook'),
                checkpoint=dict(type='CheckpointHook', save_best='auto'),
            ),
            visualizer=dict(type='Visualizer'),
            optim_wrapper=dict(type='OptimWrapper'),
            train_dataloader=loader,
            val_dataloader=loader,
            test_dataloader=loader,
            test_evaluator=dict(type='Metric'),
            **options,
        )
    )


class TestLoadConfig:
    def test_options_change_it(self, det_config):
        cfg = engine.load_config(str(det_config), {'model.backbone.with_cp': True})
        assert cfg.model.backbone.with_cp is True

    def test_options_change_entries_of_lists_and_replace_values(self, det_config):
        arch = {'model.backbone.arch._delete_': True, 'model.backbone.arch.widths': [144, 272, 368]}
        options = {'param_scheduler.1.end': 24, **arch, 'model.backbone.arch.depths': [1, 1, 1]}
        cfg = engine.load_config(str(det_config), options)
        assert cfg.param_scheduler[1].end == 24
        assert cfg.model.backbone.arch == dict(widths=[144, 272, 368], depths=[1, 1, 1])

    def test_no_persistent_workers_without_workers(self, det_config):
        options = {'val_dataloader.num_workers': 2}
        cfg = engine.load_config(str(det_config), options)
        assert cfg.train_dataloader.persistent_workers is False
        assert cfg.val_dataloader.persistent_workers is True

    def test_a_new_setting_is_said(self, det_config, monkeypatch):
        said = []
        monkeypatch.setattr(options_module, 'print_log', lambda text, **_: said.append(text))
        options = {
            'model.test_cfg.score_th': 0.1,
            'model.test_cfg.nmss.type': 'x',
            'model.test_cfg.score_thr': 0,
            # Valid ones, that the config leaves at their defaults.
            'model.bbox_head.reg_decoded_bbox': True,
            'model.backbone.norm_cfg.type': 'BN',
            'model.backbone.norm_cfg.requires_grad': False,
            'default_hooks.checkpoint.save_begin': 2,
            'default_hooks.early.type': 'EarlyStoppingHook',
            'default_hooks.early.monitor': 'coco/bbox_mAP',
            'train_dataloader.drop_last': True,
            'optim_wrapper.accumulative_counts': 2,
            'optim_wrapper.dtype': 'bfloat16',
            'default_hooks.param_scheduler.priority': 'LOW',
            'val_cfg.fp16': False,
        }
        engine.load_config(str(det_config), {**options, 'randomness.seed': 1})
        assert len(said) == 2
        assert "adds 'score_th' to model.test_cfg" in said[0] and "did you mean 'score_thr'" in said[0]
        assert "adds 'nmss' to model.test_cfg" in said[1]

    @pytest.mark.parametrize(
        ('name', 'words'),
        [
            (
                'model.bbox_head.num_clases',
                "RetinaHead has no setting 'num_clases'; did you mean 'num_classes'?",
            ),
            ('model.bbox_head.loss_bbox.weight', "L1Loss .* 'loss_weight'"),
            ('model.train_cfg.assigner.pos_iou', "MaxIoUAssigner .*'pos_iou_thr'"),
            ('model.backbne', "RetinaNet .* 'backbone'"),
            ('train_dataloader.batchsize', "DataLoader .* 'batch_size'"),
            ('train_dataloader.dataset.pipeline.1.with_boxes', "LoadAnnotations .* 'with_bbox'"),
            ('train_cfg.max_epoch', "EpochBasedTrainLoop .* 'max_epochs'"),
            ('optim_wrapper.optimizer.Lr', 'AdamW .* It has lr, betas'),
            ('default_hooks.checkpoint.intervall', "CheckpointHook .* 'interval'"),
            ('val_evaluator.metrics', "CocoMetric .* 'metric'"),
            ('param_scheduler.1.tmax', "CosineAnnealingLR .* 'T_max'"),
        ],
    )
    def test_a_setting_that_does_not_exist_is_refused(self, det_config, name, words):
        with pytest.raises(UserError, match=f'^{name}: .*{words}'):
            engine.load_config(str(det_config), {name: 1})

    def test_a_hook_that_does_not_exist_is_refused(self, det_config):
        words = "^default_hooks.checkpont has .* no hook; did you mean 'checkpoint'.* A new one needs"
        with pytest.raises(UserError, match=words):
            engine.load_config(str(det_config), {'default_hooks.checkpont.interval': 1})

    def test_one_in_a_config_file_is_refused(self, det_config):
        det_config.write_text(det_config.read_text() + '\nmodel = dict(neck=dict(out_chanels=64))\n')
        with pytest.raises(UserError, match="^model.neck.out_chanels: EfficientViTFPN .*'out_channels'"):
            engine.load_config(str(det_config))

    def test_misspelt_names_at_the_top_are_told_of(self, det_config, monkeypatch):
        said = []
        monkeypatch.setattr(options_module, 'print_log', lambda text, **_: said.append(text))
        det_config.write_text(det_config.read_text() + '\ncustom_hook = []\nmy_hooks = []\n')
        engine.load_config(str(det_config))
        (line,) = said
        assert line.startswith('custom_hook in ') and line.endswith('did you mean custom_hooks?')

    def test_settings_that_have_no_effect_are_told_of(self, det_config, coco_root, monkeypatch):
        options = {
            'model.bbox_head.num_classes': 3,
            'train_dataloader.batch_size': 2,
            'model.backbone.out_indices': (1, 2, 3),
        }
        cfg = retarget(engine.load_config(str(det_config), options), coco_root)
        said = []
        monkeypatch.setattr(options_module, 'print_log', lambda text, **_: said.append(text))
        engine.report_overruled(cfg, options)
        engine.report_overruled(cfg, None)
        (line,) = said
        assert line.startswith('model.bbox_head.num_classes is 2: ') and 'the 3 of --cfg-options' in line

    def test_no_model(self, tmp_path):
        (tmp_path / 'x.py').write_text('x = 1')
        with pytest.raises(UserError, match='x.py. has no model. Inherit one'):
            engine.load_config(str(tmp_path / 'x.py'))


class TestWorkDir:
    def test_order_of_precedence(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / 'name.py').write_text('')
        cfg = Config.fromfile(tmp_path / 'name.py')
        engine.set_work_dir(cfg)
        assert cfg.work_dir == './work_dirs/name'
        cfg.work_dir = 'own'
        engine.set_work_dir(cfg)
        assert cfg.work_dir == 'own'
        engine.set_work_dir(cfg, 'given')
        assert cfg.work_dir == 'given'
        assert not Path('given').exists(), 'a run that is refused later leaves no folder'


class TestTrainingOptions:
    def test_amp(self, monkeypatch):
        monkeypatch.setattr(config_module, 'get_device', lambda: 'cuda')
        cfg = simple_config()
        engine.enable_amp(cfg)
        assert cfg.optim_wrapper == dict(type='AmpOptimWrapper', loss_scale='dynamic')
        cfg.optim_wrapper.loss_scale = 512.0
        engine.enable_amp(cfg)
        assert cfg.optim_wrapper.loss_scale == 512.0
        cfg.optim_wrapper.type = 'ApexOptimWrapper'
        with pytest.raises(UserError, match='the config has a ApexOptimWrapper'):
            engine.enable_amp(cfg)

    def test_amp_on_a_cpu_is_of_bfloat16_or_float16(self, monkeypatch):
        monkeypatch.setattr(config_module, 'get_device', lambda: 'cpu')
        cfg = simple_config()
        cfg.optim_wrapper = dict(type='AmpOptimWrapper', loss_scale=512.0)
        engine.enable_amp(cfg)
        assert cfg.optim_wrapper == dict(type='CPUAmpOptimWrapper', dtype='bfloat16')
        cfg.optim_wrapper.dtype = 'float16'
        engine.enable_amp(cfg)
        assert cfg.optim_wrapper == dict(type='CPUAmpOptimWrapper', dtype='float16', loss_scale='dynamic')
        cfg.optim_wrapper.loss_scale = 512.0
        engine.enable_amp(cfg)
        assert cfg.optim_wrapper.loss_scale == 512.0
        cfg.optim_wrapper.dtype = 'float64'
        with pytest.raises(UserError, match='float64, but --amp on a CPU computes in bfloat16 or float16'):
            engine.enable_amp(cfg)

    def test_amp_in_configs_whose_types_are_classes(self, monkeypatch):
        monkeypatch.setattr(config_module, 'get_device', lambda: 'cpu')
        cfg = simple_config()
        cfg.optim_wrapper.type = OptimWrapper
        engine.enable_amp(cfg)
        assert cfg.optim_wrapper == dict(type='CPUAmpOptimWrapper', dtype='bfloat16')

    def test_amp_is_refused_where_there_is_none(self, monkeypatch):
        monkeypatch.setattr(config_module, 'get_device', lambda: 'mps')
        with pytest.raises(UserError, match='Train without --amp'):
            engine.enable_amp(simple_config())

    def test_auto_scale_lr(self):
        cfg = simple_config(auto_scale_lr=dict(base_batch_size=16, enable=False))
        engine.enable_auto_scale_lr(cfg)
        assert cfg.auto_scale_lr.enable
        with pytest.raises(UserError, match='base_batch_size'):
            engine.enable_auto_scale_lr(simple_config())

    def test_randomness(self):
        cfg = simple_config(randomness=dict(seed=1, diff_rank_seed=True))
        engine.set_randomness(cfg, None, False)
        assert cfg.randomness.seed == 1
        engine.set_randomness(cfg, 0, True)
        assert cfg.randomness == dict(seed=0, diff_rank_seed=True, deterministic=True)
        cfg = simple_config()
        engine.set_randomness(cfg, None, False)
        assert 'randomness' not in cfg

    def test_skipping_validation_or_training(self):
        cfg = simple_config()
        engine.skip_validation(cfg)
        assert cfg.val_dataloader is cfg.val_cfg is cfg.val_evaluator is None
        assert 'save_best' not in cfg.default_hooks.checkpoint
        engine.skip_training(cfg)
        assert cfg.train_dataloader is cfg.train_cfg is cfg.optim_wrapper is None

    @pytest.mark.parametrize('hooks', [None, dict(checkpoint=None)])
    def test_skipping_validation_where_nothing_is_saved(self, hooks):
        cfg = simple_config()
        cfg.default_hooks = hooks
        engine.skip_validation(cfg)
        assert cfg.val_dataloader is None

    @pytest.mark.parametrize('length', [0, -1, 1.5, 'abc'])
    def test_trainings_of_no_length(self, length):
        cfg = simple_config(train_cfg=dict(max_epochs=length))
        with pytest.raises(UserError, match=f'max_epochs is {length!r}; allowed are integers from 1'):
            engine.add_safeguards(cfg)

    COCO = dict(type='CocoMetric', metric=['bbox', 'segm'])
    IOU = dict(type='IoUMetric', iou_metrics=['mIoU', 'mFscore'])

    @pytest.mark.parametrize(
        ('evaluator', 'best', 'message'),
        [
            (COCO, 'coco/segm_mAP_50', None),
            (
                COCO,
                'coco/bbox_map',
                'save_best is coco/bbox_map, but .* gives coco/bbox_mAP, coco/bbox_mAP_50',
            ),
            ([COCO, IOU], ['mRecall', 'coco/bbox_mAP_s', 'auto'], None),
            (dict(COCO, classwise=True), 'cat_precision', None),
            (dict(type='VOCMetric'), 'pascal_voc/mAP', None),
            (IOU, 'mDice', 'save_best is mDice, but .* gives aAcc, mAcc, mFscore'),
            (dict(type='IoUMetric', prefix='val'), 'val/mIoU', None),
            (
                dict(type='IoUMetric', iou_metrics='mIoUU'),
                'mIoU',
                'has mIoUU; allowed are mIoU, mDice, mFscore',
            ),
            (None, 'mIoU', 'gives nothing, for there is none'),
        ],
    )
    def test_names_of_metrics(self, evaluator, best, message):
        cfg = simple_config(val_evaluator=evaluator)
        cfg.default_hooks.checkpoint.save_best = best
        with pytest.raises(UserError, match=message) if message else nullcontext():
            engine.add_safeguards(cfg)

    @pytest.mark.parametrize('hooks', [{'0': dict(type='EMAHook')}, ['EMAHook'], 'EMAHook'])
    def test_custom_hooks_that_are_none(self, hooks):
        for change in (engine.add_safeguards, engine.load_for_training, engine.deploy_for_test):
            with pytest.raises(UserError, match='custom_hooks is .*; allowed is a list of hooks'):
                change(simple_config(custom_hooks=hooks))

    def test_options_of_what_is_not_there(self):
        cfg = Config(dict(model=dict(type='Model'), auto_scale_lr=None))
        with pytest.raises(UserError, match='base_batch_size'):
            engine.enable_auto_scale_lr(cfg)
        with pytest.raises(UserError, match='--amp needs an optim_wrapper'):
            engine.enable_amp(cfg)
        with pytest.raises(UserError, match='--out needs a test_evaluator'):
            engine.dump_predictions(cfg, 'out.pkl')


class TestPredictions:
    def test_nothing_asked_changes_nothing(self):
        cfg = simple_config()
        before = cfg.pretty_text
        engine.show_predictions(cfg)
        engine.dump_predictions(cfg, None)
        assert cfg.pretty_text == before

    def test_detection_draws_into_the_folder(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        cfg = simple_config()
        engine.show_predictions(cfg, show_dir='shown')
        hook = cfg.default_hooks.visualization
        assert hook.draw and hook.test_out_dir == str(tmp_path / 'shown')
        assert 'show' not in hook

    def test_segmentation_draws_every_image(self, tmp_path):
        cfg = simple_config('mmseg')
        engine.show_predictions(cfg, show_dir=str(tmp_path / 'shown'))
        hook = cfg.default_hooks.visualization
        assert hook.draw and hook.interval == 1
        assert cfg.visualizer.save_dir == str(tmp_path / 'shown')

    def test_windows(self, monkeypatch):
        cfg = simple_config()
        with pytest.raises(UserError, match='no window here: .* --show-dir'), monkeypatch.context() as patch:
            patch.setattr(pyplot, 'get_backend', lambda: 'agg')
            engine.show_predictions(cfg, show=True)
        monkeypatch.setattr(pyplot, 'get_backend', lambda: 'QtAgg')
        engine.show_predictions(cfg, show=True, wait_time=0.5)
        hook = cfg.default_hooks.visualization
        assert hook.show and hook.wait_time == 0.5
        assert 'test_out_dir' not in hook

    def test_config_without_the_hook_is_refused(self, tmp_path):
        cfg = simple_config()
        del cfg.default_hooks['visualization']
        with pytest.raises(UserError, match='DetVisualizationHook or SegVisualizationHook'):
            engine.show_predictions(cfg, show_dir=str(tmp_path))

    def test_detections_are_dumped_beside_the_metric(self, tmp_path):
        cfg = simple_config()
        out = str(tmp_path / 'new/predictions.pkl')
        engine.dump_predictions(cfg, out)
        assert [e.type for e in cfg.test_evaluator] == ['Metric', 'DumpDetResults']
        assert cfg.test_evaluator[1].out_file_path == out
        with pytest.raises(UserError, match="predictions.txt'.*ends in .pkl"):
            engine.dump_predictions(cfg, str(tmp_path / 'predictions.txt'))

    def test_label_maps_are_written_by_the_metric(self, tmp_path):
        cfg = simple_config('mmseg')
        engine.dump_predictions(cfg, str(tmp_path / 'maps'))
        assert [e.output_dir for e in cfg.test_evaluator] == [str(tmp_path / 'maps')]
        (tmp_path / 'file').write_text('')
        with pytest.raises(UserError, match='Cannot write to .*--out'):
            engine.dump_predictions(cfg, str(tmp_path / 'file'))

    def test_tta_wraps_model_and_pipeline(self):
        cfg = simple_config(tta_model=dict(type='TTA'), tta_pipeline=[dict(type='Load')])
        engine.enable_tta(cfg)
        assert cfg.model == dict(type='TTA', module=dict(type='Model'))
        assert cfg.test_dataloader.dataset.dataset.pipeline == [dict(type='Load')]
        cfg = simple_config(tta_model=dict(type=OptimWrapper), tta_pipeline=[dict(type='Load')])
        engine.enable_tta(cfg)
        assert cfg.model.type == 'OptimWrapper'  # as a text, whatever the class
        with pytest.raises(UserError, match='tta_model and tta_pipeline in the config'):
            engine.enable_tta(simple_config())
