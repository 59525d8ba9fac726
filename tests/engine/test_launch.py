import os
import subprocess
import sys

import pytest
import torch
from configs.cases import CONFIGS
from mmengine.config import Config
from tiny import REPOSITORY
from torch.nn import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm

from mmmobilemamba import engine
from mmmobilemamba.errors import UserError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for name in ('RANK', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'WORLD_SIZE'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('LOCAL_RANK', '0')


def test_one_process_needs_nothing():
    cfg = Config({})
    engine.init_processes(cfg, 'none')
    assert cfg.launcher == 'none' and 'model_wrapper_cfg' not in cfg


def test_launcher_that_did_not_start_the_process_is_refused():
    with pytest.raises(UserError, match='tools/dist_train.sh'):
        engine.init_processes(Config({}), 'pytorch')


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    for name, value in dict(RANK='2', LOCAL_RANK='2', LOCAL_WORLD_SIZE='4').items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match='4 processes were started on a machine with 2 GPUs'):
        engine.init_processes(Config({}), 'pytorch')


def test_other_launchers_need_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    with pytest.raises(UserError, match='--launcher slurm needs a GPU'):
        engine.init_processes(Config({}), 'slurm')


def test_cpu_processes_use_gloo_and_plain_batch_norm(monkeypatch):
    started, said = [], []
    monkeypatch.setattr(engine.launch, 'print_log', lambda text, **_: said.append(text))
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    monkeypatch.setattr(torch.distributed, 'init_process_group', started.append)
    monkeypatch.setattr('atexit.register', started.append)
    monkeypatch.setenv('RANK', '0')
    norm = dict(type='SyncBN', requires_grad=True)
    cfg = Config(
        dict(
            model=dict(
                backbone=dict(norm_cfg=norm),
                heads=[
                    dict(norm_cfg=dict(norm, type=t)) for t in ('mmengine.SyncBN', 'MMSyncBN', SyncBatchNorm)
                ],
            ),
            sync_bn='torch',
            find_unused_parameters=True,
            model_wrapper_cfg=dict(broadcast_buffers=True),
        )
    )
    engine.init_processes(cfg, 'pytorch')
    assert started == ['gloo', engine.launch._end_cpu_processes]
    assert cfg.model_wrapper_cfg == dict(
        type='MMDistributedDataParallel',
        device_ids=None,
        broadcast_buffers=True,
        find_unused_parameters=True,
    )
    assert cfg.model.backbone.norm_cfg == dict(type='BN', requires_grad=True)
    assert [head.norm_cfg.type for head in cfg.model.heads] == ['BN'] * 3 and not cfg.sync_bn
    assert said == ["SyncBN does not work on a CPU: 4 norm_cfg became BN, sync_bn='torch' is not applied"]
    assert os.environ['LOCAL_RANK'] == '0'


def test_sync_bn_runs_on_one_cpu(tmp_path):
    options = {'model.backbone.norm_cfg': dict(type='SyncBN', requires_grad=True)}
    cfg = engine.load_config(str(CONFIGS / 'seg/pspnet_mobilemamba.py'), options, 't2')
    assert cfg.model.decode_head.norm_cfg.type == 'SyncBN'
    cfg.work_dir = str(tmp_path)
    engine.skip_training(cfg)
    model = engine.build_runner(cfg).model.cpu().train()
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    assert norms and not any(isinstance(m, torch.nn.SyncBatchNorm) for m in norms)
    logits = model(torch.rand(2, 3, 64, 64), mode='tensor')
    logits.square().mean().backward()
    assert torch.isfinite(model.backbone.stem[0].conv.weight.grad).all()


def test_gpu_processes_communicate_before_the_runner_is_built(monkeypatch):
    begun = []
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setenv('RANK', '0')
    monkeypatch.setattr(engine.launch, 'set_multi_processing', lambda **given: begun.append(given))
    monkeypatch.setattr(engine.launch, 'init_dist', lambda *given, **options: begun.append((given, options)))
    env = dict(mp_cfg=dict(mp_start_method='fork'), dist_cfg=dict(backend='nccl', timeout=9))
    engine.init_processes(Config(dict(env_cfg=env)), 'pytorch')
    assert begun == [
        dict(mp_start_method='fork', distributed=True),
        (('pytorch',), dict(backend='nccl', timeout=9)),
    ]
    engine.init_processes(Config(dict(env_cfg=env, runner_type='FlexibleRunner')), 'pytorch')
    assert len(begun) == 2


def test_alone_the_first_process_is_this_one():
    assert engine.in_first_process(max, 3, 4) == 4


CHECKS_ONCE = """
import os
from mmengine.config import Config
from mmmobilemamba import engine
from mmmobilemamba.errors import UserError

def say(text):
    os.write(1, f'{text}\\n'.encode())  # at once, or the lines of two processes may mix

def check(fine):
    say(f'checked by {os.environ["RANK"]}')
    if not fine:
        raise UserError('no data')
    return Config(dict(classes=('a', 'b')))

with engine.user_errors_reported():
    engine.init_processes(Config(dict(model={})), 'pytorch')
    say(f'found {engine.in_first_process(check, True).classes}')
    engine.in_first_process(check, False)
    say('went on')
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason='two processes on GPUs need two of them')
def test_first_process_checks_for_all(tmp_path):
    (tmp_path / 'checks.py').write_text(CHECKS_ONCE)
    command = (sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2')
    env = dict(os.environ, PYTHONPATH=f'{REPOSITORY}{os.pathsep}{os.environ.get("PYTHONPATH", "")}')
    done = subprocess.run((*command, 'checks.py'), cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stdout.count('checked by 0') == done.stdout.count('checked by') == 2
    assert done.stdout.count("found ('a', 'b')") == 2 and 'went on' not in done.stdout
    assert done.stderr.count('error: no data') == 1
    # The launcher's own is the only one.
    assert done.stderr.count('Traceback') == 1
