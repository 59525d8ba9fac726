import os

import pytest
import torch
from mmengine.config import Config

from mmmobilemamba import engine
from mmmobilemamba.checkpoint import CheckpointError
from mmmobilemamba.engine.start import latest_checkpoint
from mmmobilemamba.errors import UserError

TRAINING_STATE = dict(meta={}, state_dict={}, optimizer={}, message_hub={})


@pytest.fixture
def run(tmp_path):
    """A work directory with the checkpoints of three epochs, the last one cut short."""
    for epoch in (9, 10, 11):
        path = tmp_path / f'epoch_{epoch}.pth'
        torch.save(dict(TRAINING_STATE, meta=dict(epoch=epoch)), path)
        os.utime(path, (epoch, epoch))
    path.write_bytes(path.read_bytes()[:-100])
    os.utime(path, (11, 11))
    torch.save(TRAINING_STATE, tmp_path / 'best_bbox_mAP.pth')
    return tmp_path


def hook_of(cfg):
    (hook,) = cfg.custom_hooks
    return hook


def found(work_dir, **hook) -> str | None:
    return latest_checkpoint(Config(dict(work_dir=str(work_dir), default_hooks=dict(checkpoint=hook))))


class TestLatestCheckpoint:
    def test_one_that_was_cut_short_is_passed_over(self, run):
        assert found(run) == str(run / 'epoch_10.pth')

    def test_pointer_comes_before_file_times(self, run):
        (run / 'last_checkpoint').write_text('/elsewhere/epoch_9.pth')
        assert found(run) == str(run / 'epoch_9.pth')

    @pytest.mark.parametrize('text', ['', '/elsewhere/epoch_11.pth', 'epoch_12.pth'])
    def test_useless_pointer_is_ignored(self, run, text):
        (run / 'last_checkpoint').write_text(text)
        assert found(run) == str(run / 'epoch_10.pth')

    def test_none(self, tmp_path):
        assert found(tmp_path) is None

    def test_name_of_its_own(self, run):
        for number in (2, 11):
            torch.save(TRAINING_STATE, run / f'step-{number:03}+.pth')
            os.utime(run / f'step-{number:03}+.pth', (20 - number, 20 - number))
        assert found(run, filename_tmpl='step-{:03d}+.pth') == str(run / 'step-002+.pth')
        (run / 'last_checkpoint').write_text(str(run / 'step-011+.pth'))
        assert found(run, filename_tmpl='step-{:03d}+.pth') == found(run) == str(run / 'step-011+.pth')

    def test_folder_of_its_own(self, run, tmp_path_factory):
        elsewhere = tmp_path_factory.mktemp('elsewhere')
        moved = elsewhere / run.name
        moved.mkdir()
        for epoch in (12, 13):
            torch.save(TRAINING_STATE, moved / f'epoch_{epoch}.pth')
            os.utime(moved / f'epoch_{epoch}.pth', (epoch, epoch))
        assert found(run, out_dir=str(elsewhere)) == str(moved / 'epoch_13.pth')
        (run / 'last_checkpoint').write_text(str(moved / 'epoch_12.pth'))
        # With and without the option; and where that folder was moved since.
        assert found(run, out_dir=str(elsewhere)) == found(run) == str(moved / 'epoch_12.pth')
        (run / 'last_checkpoint').write_text(f'/gone/{run.name}/epoch_12.pth')
        assert found(run, out_dir=str(elsewhere)) == str(moved / 'epoch_12.pth')

    def test_copy_of_a_run_goes_on_from_its_own(self, run, tmp_path_factory):
        copied = tmp_path_factory.mktemp('copy')
        torch.save(TRAINING_STATE, copied / 'epoch_9.pth')
        (copied / 'last_checkpoint').write_text(str(run / 'epoch_9.pth'))
        assert found(copied) == str(copied / 'epoch_9.pth')

    @pytest.mark.parametrize('name', ['gone.pth', 'epoch_11.pth'])
    def test_a_run_whose_checkpoints_are_gone_is_not_begun_anew(self, run, name):
        for epoch in (9, 10):
            (run / f'epoch_{epoch}.pth').unlink()
        assert found(run) is None
        (run / 'last_checkpoint').write_text(f'/elsewhere/{name}')
        with pytest.raises(UserError, match=f"names '/elsewhere/{name}'.*--resume FILE.*--work-dir"):
            found(run)


class TestResume:
    def test_auto_takes_the_newest(self, run):
        cfg = Config(dict(work_dir=str(run), load_from='pretrained.pth'))
        engine.resume_training(cfg, 'auto')
        assert cfg.resume and cfg.load_from == str(run / 'epoch_10.pth')
        assert hook_of(cfg) == dict(type='StrictLoadHook')

    def test_auto_without_a_checkpoint_starts_as_usual(self, tmp_path):
        cfg = Config(dict(work_dir=str(tmp_path), load_from='pretrained.pth'))
        engine.resume_training(cfg, 'auto')
        assert cfg.get('resume') is None and cfg.load_from == 'pretrained.pth'

    def test_given_checkpoint(self, run):
        cfg = Config(dict(work_dir='.'))
        engine.resume_training(cfg, str(run / 'epoch_9.pth'))
        assert cfg.resume and cfg.load_from == str(run / 'epoch_9.pth')
        with pytest.raises(CheckpointError, match='epoch_11.pth'):
            engine.resume_training(cfg, str(run / 'epoch_11.pth'))

    def test_seed_is_that_of_the_run(self, tmp_path):
        torch.save(dict(TRAINING_STATE, meta=dict(seed=7)), tmp_path / 'x.pth')
        cfg = Config(dict(randomness=dict(seed=0, deterministic=True)))
        engine.resume_training(cfg, str(tmp_path / 'x.pth'))
        assert cfg.randomness == dict(seed=7, deterministic=True)

    def test_weights_alone_cannot_be_resumed(self, tmp_path):
        torch.save(dict(meta={}, state_dict={}), tmp_path / 'x.pth')
        with pytest.raises(CheckpointError, match='no optimizer, message_hub.*--load-from'):
            engine.resume_training(Config({}), str(tmp_path / 'x.pth'))


class TestLoad:
    def test_for_training(self, run):
        cfg = Config(dict(custom_hooks=[dict(type='StrictLoadHook', reinit=('old',))]))
        engine.load_for_training(cfg, str(run / 'epoch_9.pth'), ['bbox_head'])
        assert cfg.load_from == str(run / 'epoch_9.pth')
        assert hook_of(cfg) == dict(type='StrictLoadHook', reinit=('bbox_head',))

    def test_for_training_with_the_checkpoint_of_the_config(self, run):
        cfg = Config(dict(load_from=str(run / 'missing.pth')))
        with pytest.raises(CheckpointError, match='missing.pth'):
            engine.load_for_training(cfg)

    def test_reinit_needs_a_checkpoint(self):
        with pytest.raises(UserError, match='--reinit goes with --load-from'):
            engine.load_for_training(Config({}), reinit=['bbox_head'])

    def test_for_testing(self, run):
        cfg = Config(dict(resume=True))
        engine.load_for_testing(cfg, str(run / 'epoch_9.pth'))
        assert cfg.load_from == str(run / 'epoch_9.pth') and not cfg.resume
        with pytest.raises(CheckpointError, match='gone.pth'):
            engine.load_for_testing(cfg, str(run / 'gone.pth'))
