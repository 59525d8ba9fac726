"""Training that is interrupted and resumed ends as if it had not been."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import get_file_backend
from mmengine.hooks import CheckpointHook
from mmengine.optim import CosineAnnealingLR
from mmengine.runner.loops import _InfiniteDataloaderIterator
from tiny import REPOSITORY

from mmmobilemamba import engine
from mmmobilemamba.checkpoint import read_checkpoint
from mmmobilemamba.engine import OwnBestHook, safeguards, start
from mmmobilemamba.engine.start import latest_checkpoint
from mmmobilemamba.errors import UserError


def inherit(base: Path, text: str) -> Path:
    """A config beside another one that it changes."""
    config = base.with_name(f'changed_{base.name}')
    config.write_text(f'_base_ = {str(base)!r}\n{text}')
    return config


def stopped(config: Path, iteration: int, by: signal.Signals) -> Path:
    """The config with a signal to the process in the given iteration, counted from 0."""
    return inherit(
        config,
        "custom_imports = dict(imports=['mmmobilemamba', 'stopped_at'])\n"
        'custom_hooks = [*_base_.custom_hooks, '
        f"dict(type='StoppedAt', iteration={iteration}, number={int(by)})]\n",
    )


def train_until_killed(config: Path, iteration: int, *options) -> None:
    """Run tools/train.py in a process that SIGKILL ends in the given iteration."""
    env = dict(
        os.environ,
        PYTHONPATH=os.pathsep.join(
            map(str, [REPOSITORY, Path(__file__).parent, os.environ.get('PYTHONPATH', '')])
        ),
        OMP_NUM_THREADS='1',
    )
    deadly = stopped(config, iteration, signal.SIGKILL)
    command = [sys.executable, REPOSITORY / 'tools/train.py', deadly, *options]
    done = subprocess.run(
        [str(word) for word in command], cwd=config.parent, env=env, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stdout[-3000:] + done.stderr[-3000:]


def losses(work_dir: Path) -> dict[int, list[dict]]:
    """All that was logged of each iteration but the times, of all runs in a work directory."""
    logged: dict[int, list[dict]] = {}
    for file in sorted(work_dir.glob('*/vis_data/scalars.json')):
        for line in map(json.loads, file.read_text().splitlines()):
            step = line.pop('step')
            logged.setdefault(step, []).append(
                {key: value for key, value in line.items() if key not in ('time', 'data_time', 'memory')}
            )
    return logged


def assert_same(a, b, where: str = '') -> None:
    """Nested containers hold equal tensors and numbers, to the last bit."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f'{where}.{key}')
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f'{where}[{i}]')
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def assert_ended_alike(straight: Path, resumed: Path, checkpoint: str, first: int) -> None:
    """Same final state, and the same losses since the iteration ``first`` that was resumed with."""
    a, b = (read_checkpoint(str(folder / checkpoint)) for folder in (straight, resumed))
    assert a.keys() == b.keys()
    for key in a.keys() - {'meta', 'message_hub'}:
        assert_same(a[key], b[key], key)
    expected, actual = losses(straight), losses(resumed)
    assert expected.keys() == actual.keys()
    assert all(actual[step][-1] == expected[step][-1] for step in expected if step >= first)


@pytest.fixture
def one_thread(set_num_threads):
    """As many threads as the process that is killed: the order of sums depends on it."""
    set_num_threads(1)
    yield
    torch.use_deterministic_algorithms(False)


# Two batches an epoch. Half of the pictures are flipped, in workers of their own.
DETECTION = """
model = dict(
    backbone=dict(arch=dict(_delete_=True, widths=[32, 48, 64], depths=[1, 1, 1]), drop_path_rate=0.2),
    neck=dict(in_channels=[32, 48, 64]),
)
train_dataloader = dict(batch_size=2, num_workers=2, persistent_workers=True)
train_cfg = dict(max_epochs=3)
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=2))
custom_hooks = [dict(type='EMAHook', momentum=0.1)]
"""

# Dropout in the heads, random crops, scales and colours, all drawn in one process, and validation between.
SEGMENTATION = """
train_cfg = dict(max_iters=6, val_interval=3)
default_hooks = dict(checkpoint=dict(interval=2))
custom_hooks = [dict(type='EMAHook', momentum=0.1)]
"""


def test_detector_killed_in_mid_epoch(tmp_path, tool, det_config, coco_root, one_thread):
    config = inherit(det_config, DETECTION)
    train = ('--data-root', coco_root, '--no-validate', '--seed', 3, '--deterministic', '--work-dir')
    train_until_killed(config, 4, *train, 'resumed')
    assert latest_checkpoint(Config(dict(work_dir='resumed'))) == 'resumed/epoch_2.pth'
    tool('train.py', config, *train, 'straight')
    tool('train.py', config, *train, 'resumed', '--resume')
    assert_ended_alike(tmp_path / 'straight', tmp_path / 'resumed', 'epoch_3.pth', 5)


@pytest.mark.skipif(
    hasattr(_InfiniteDataloaderIterator, 'skip_iter'),
    reason='this MMEngine passes over data without loading them, and so draws other augmentations',
)
def test_segmentor_interrupted_between_checkpoints(tmp_path, tool, seg_config, ade_root, one_thread):
    config = inherit(seg_config, SEGMENTATION)
    train = ('--data-root', ade_root, '--deterministic', '--work-dir')
    with pytest.raises(KeyboardInterrupt):
        tool('train.py', stopped(config, 4, signal.SIGINT), *train, 'resumed', '--seed', 3)
    assert latest_checkpoint(Config(dict(work_dir='resumed'))) == 'resumed/iter_4.pth'
    tool('train.py', config, *train, 'straight', '--seed', 3)
    # The seed is that of the checkpoint.
    tool('train.py', config, *train, 'resumed', '--resume')
    assert_ended_alike(tmp_path / 'straight', tmp_path / 'resumed', 'iter_6.pth', 5)


class TestSettingsOfTheCheckpoint:
    """MMEngine restores them over those of the config."""

    SCHEDULE = dict(type='MultiStepLR', milestones=[8, 11], by_epoch=True)

    def config(self, tmp_path, lr=0.1, **options) -> Config:
        optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=lr))
        return Config(
            dict(
                optim_wrapper=optim_wrapper,
                param_scheduler=[self.SCHEDULE],
                work_dir=str(tmp_path),
                custom_hooks=[],
                **options,
            )
        )

    def resumed(self, cfg: Config, text: str, tmp_path, monkeypatch, **meta) -> list[str]:
        file, log = tmp_path / 'epoch_1.pth', []
        torch.save(dict(meta=dict(cfg=text, **meta), state_dict={}, optimizer={}, message_hub={}), file)
        monkeypatch.setattr(start, 'print_log', lambda text, **options: log.append(text))
        engine.resume_training(cfg, str(file))
        return log

    def test_others_in_the_config_have_no_effect_and_it_is_said(self, tmp_path, monkeypatch):
        cfg = self.config(tmp_path, lr=0.02)
        cfg.param_scheduler[0].milestones = [16, 22]
        said = '\n'.join(self.resumed(cfg, self.config(tmp_path).pretty_text, tmp_path, monkeypatch))
        assert re.search(r'optimizer of the checkpoint, dict\(lr=0.1, .*now, dict\(lr=0.02, ', said)
        assert re.search(r'milestones=\[8, 11\].*now, .*milestones=\[16, 22\].* no effect', said)

    def test_what_may_differ(self, tmp_path, monkeypatch):
        cfg = self.config(tmp_path, load_from='x.pth')
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        assert self.resumed(cfg, self.config(tmp_path).pretty_text, tmp_path, monkeypatch) == []

    @pytest.mark.parametrize('text', ['', 'model = <function f>'])
    def test_checkpoint_without_a_readable_config(self, text, tmp_path, monkeypatch):
        assert self.resumed(self.config(tmp_path), text, tmp_path, monkeypatch) == []

    @pytest.mark.parametrize('settings', [dict(max_iters=20), dict(by_epoch=True, max_epochs=2)])
    def test_a_finished_run(self, settings, tmp_path, monkeypatch):
        for done in (False, True):
            meta = dict(epoch=1 + done, iter=19 + done)
            said = self.resumed(self.config(tmp_path, train_cfg=settings), '', tmp_path, monkeypatch, **meta)
            assert len(said) == done and all('nothing is left to train' in line for line in said)


class TestWholeFiles:
    @pytest.fixture
    def backend(self):
        return get_file_backend('x.pth', backend_args=dict(backend='whole_file'))

    def test_replaced_once_complete(self, tmp_path, backend):
        file = tmp_path / 'x.pth'
        file.write_bytes(b'old')
        backend.put(b'new', file)
        assert [p.name for p in tmp_path.iterdir()] == ['x.pth'] and file.read_bytes() == b'new'

    def test_an_error_leaves_the_old_file(self, tmp_path, backend, monkeypatch):
        file = tmp_path / 'x.pth'
        file.write_bytes(b'old')

        def full(descriptor):
            raise OSError(28, 'No space left on device')

        monkeypatch.setattr(os, 'fsync', full)
        with pytest.raises(OSError, match='No space'):
            backend.put(b'new', file)
        assert [p.name for p in tmp_path.iterdir()] == ['x.pth'] and file.read_bytes() == b'old'

    def test_what_a_kill_leaves_is_no_checkpoint(self, tmp_path, backend, monkeypatch):
        monkeypatch.setattr(Path, 'replace', lambda *paths: None)
        backend.put(b'half', tmp_path / 'epoch_2.pth')
        assert len(list(tmp_path.iterdir())) == 1
        assert latest_checkpoint(Config(dict(work_dir=str(tmp_path)))) is None


def log_of(function, cfg, monkeypatch) -> list[str]:
    log = []
    monkeypatch.setattr(safeguards, 'print_log', lambda text, **options: log.append(text))
    function(cfg)
    return log


@pytest.mark.parametrize(
    'out_dir, folder', [(None, 'copy'), ('copy', 'copy'), ('elsewhere', 'elsewhere/copy')]
)
@pytest.mark.parametrize('own', [True, False])
def test_the_best_checkpoint_of_another_run_is_let_alone(tmp_path, out_dir, folder, own):
    folder = tmp_path / folder
    folder.mkdir(parents=True)
    if own:
        (folder / 'best_mIoU.pth').touch()
    hook = CheckpointHook(out_dir=str(tmp_path / out_dir) if out_dir else None)
    runner = SimpleNamespace(work_dir=str(tmp_path / 'copy'), hooks=[hook])
    remembered = dict(best_ckpt='original/best_mIoU.pth', best_score=1, best_ckpt_AP='s3://original/best.pth')
    OwnBestHook().after_load_checkpoint(runner, dict(message_hub=dict(runtime_info=remembered)))
    assert remembered.pop('best_ckpt', None) == (str(folder / 'best_mIoU.pth') if own else None)
    assert remembered == dict(best_score=1, best_ckpt_AP='s3://original/best.pth')


class TestSafeguards:
    def build(self, **checkpoint):
        return Config(
            dict(train_dataloader=dict(persistent_workers=True), default_hooks=dict(checkpoint=checkpoint))
        )

    def test_checkpoints(self):
        cfg = self.build(max_keep_ckpts=1)
        engine.add_safeguards(cfg)
        assert cfg.default_hooks.checkpoint == dict(max_keep_ckpts=2, backend_args=dict(backend='whole_file'))

    @pytest.mark.parametrize(
        'elsewhere', [dict(backend_args=dict(backend='petrel')), dict(out_dir='s3://bucket')]
    )
    def test_other_storage_is_left_alone(self, elsewhere):
        cfg = self.build(**elsewhere)
        engine.add_safeguards(cfg)
        assert cfg.default_hooks.checkpoint == elsewhere

    @pytest.mark.parametrize('loader', [None, dict(batch_size=1)])
    def test_little_in_the_config(self, loader):
        cfg = Config(dict(train_dataloader=loader, default_hooks=None))
        if loader is None:
            with pytest.raises(UserError, match='no train_dataloader'):
                engine.add_safeguards(cfg)
        else:
            engine.add_safeguards(cfg)

    def test_hooks_come_once(self):
        cfg = self.build()
        engine.add_safeguards(cfg)
        hooks = list(cfg.custom_hooks)
        engine.add_safeguards(cfg)
        assert cfg.custom_hooks == hooks
        assert not cfg.train_dataloader.persistent_workers

    @pytest.mark.parametrize(
        'backbone, options, said',
        [
            (dict(norm_eval=True), {}, 'random weights, and norm_eval=True keeps its batch norms'),
            (dict(frozen_stages=0), {}, 'random weights, and frozen_stages=0 keeps parts of it random'),
            (dict(norm_eval=True, init_cfg=dict(type='Pretrained', checkpoint='b1.pth')), {}, None),
            (dict(norm_eval=True), dict(load_from='retinanet.pth'), None),
            (dict(norm_eval=True), {'model.pretrained': 'r50.pth'}, None),
            (dict(norm_eval=True, frozen_stages=1), dict(resume=True), None),
            (dict(norm_eval=False, frozen_stages=-1), {}, None),
        ],
    )
    def test_initial_values_that_would_stay(self, backbone, options, said, monkeypatch):
        cfg = self.build()
        cfg.merge_from_dict(dict(model=dict(backbone=backbone), **options))
        cfg.train_dataloader.persistent_workers = False
        log = log_of(engine.add_safeguards, cfg, monkeypatch)
        assert len(log) == bool(said)
        assert said is None or said in log[0]

    def test_workers_that_must_end_are_told_of_once(self, monkeypatch):
        cfg = self.build()
        (said,) = log_of(engine.add_safeguards, cfg, monkeypatch)
        assert 'persistent_workers of the train_dataloader is False instead of True' in said
        assert log_of(engine.add_safeguards, cfg, monkeypatch) == []

    @pytest.mark.parametrize(
        'name, option, length, end, settings',
        [
            ('det/ssdlite_mobilemamba', 'max_epochs', 240, 120, (120, 240, 120)),
            ('seg/semantic_fpn_mobilemamba', 'max_iters', 20_000, 160_000, (10_000, 20_000, 10_000)),
        ],
    )
    def test_schedule_of_another_length(self, name, option, length, end, settings, monkeypatch):
        file, options = str(REPOSITORY / f'configs/{name}.py'), {f'train_cfg.{option}': length}
        warnings = log_of(engine.add_safeguards, engine.load_config(file, options), monkeypatch)
        (said,) = (text for text in warnings if 'schedule' in text)
        assert f'train_cfg.{option} is {length}, but the schedule of the learning rate ends at {end}.' in said
        advice = dict(re.findall(r'(param_scheduler\.\S+)=(\d+)', said))
        assert advice == {
            f'param_scheduler.1.{key}': str(value)
            for key, value in zip(('begin', 'end', 'T_max'), settings, strict=True)
        }
        options |= {key: int(value) for key, value in advice.items()}
        for fits in (options, None):
            warnings = log_of(engine.add_safeguards, engine.load_config(file, fits), monkeypatch)
            assert not [text for text in warnings if 'schedule' in text]

    @pytest.mark.parametrize(
        'epochs, settings', [(5, (2, 5, 3)), (3, (2, 3, 1)), (1, (0, 1, 1)), (6, (3, 6, 3))]
    )
    def test_the_advised_schedule_ends_at_zero(self, epochs, settings, monkeypatch):
        file = str(REPOSITORY / 'configs/det/retinanet_mobilemamba.py')
        cfg = engine.load_config(file, {'train_cfg.max_epochs': epochs})
        (text,) = (t for t in log_of(engine.add_safeguards, cfg, monkeypatch) if 'schedule' in t)
        advice = {key: int(value) for key, value in re.findall(r'(param_scheduler\.\S+)=(\d+)', text)}
        assert tuple(advice.values()) == settings
        cfg.merge_from_dict(advice)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = dict(cfg.param_scheduler[1])
        del schedule['type'], schedule['convert_to_iter_based']
        scheduler = CosineAnnealingLR.build_iter_from_epoch(optimizer, **schedule, epoch_length=30)
        rates = []
        for _ in range(30 * epochs):
            rates.append(optimizer.param_groups[0]['lr'])
            optimizer.step()
            scheduler.step()
        assert rates[30 * settings[0]] == 1 and rates[-1] < 0.02
        assert all(a >= b for a, b in zip(rates, rates[1:], strict=False))

    def test_warm_up_may_end_and_others_may_not(self, monkeypatch):
        cfg = self.build()
        cfg.train_dataloader.persistent_workers = False
        cfg.train_cfg = dict(max_iters=100)
        cfg.param_scheduler = [
            dict(type='LinearLR', by_epoch=False, end=10),
            dict(type='CosineAnnealingLR', by_epoch=False, T_max=100, end=10**9),
        ]
        assert log_of(engine.add_safeguards, cfg, monkeypatch) == []
