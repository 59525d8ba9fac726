import functools
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import mmengine.config.utils as config_utils
import pytest
import torch
from mmengine.config import config
from mmengine.visualization import Visualizer
from tiny import DET_CONFIG, REPOSITORY, SEG_CONFIG, make_ade, make_coco, write_config
from yapf.yapflib import yapf_api

from mmmobilemamba.ops import native


@pytest.fixture(scope='session', autouse=True)
def quick_configs():
    """Spare the tests two slow things that MMEngine repeats in every run.

    It reads all metafiles of a package for each base config there, and lays a config out with yapf
    whenever it writes it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config_utils, '_get_cfg_metainfo', functools.cache(config_utils._get_cfg_metainfo))
        for module in (config, yapf_api):
            patch.setattr(module, 'FormatCode', lambda text, **options: (text, True), raising=False)
        yield


@pytest.fixture
def built() -> None:
    if native.missing() is not None:
        pytest.skip('the library of CPU operators was not built')


@pytest.fixture
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def set_num_threads() -> Iterator[Callable[[int], None]]:
    """That of torch, undone after the test."""
    threads = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(threads)


@pytest.fixture
def coco_root(tmp_path: Path) -> Path:
    return make_coco(tmp_path / 'coco')


@pytest.fixture
def ade_root(tmp_path: Path) -> Path:
    return make_ade(tmp_path / 'ade')


@pytest.fixture
def det_config(tmp_path: Path) -> Path:
    """File of a small RetinaNet that trains for two iterations on ``coco_root``."""
    return write_config(tmp_path / 'tiny_retinanet.py', DET_CONFIG)


@pytest.fixture
def seg_config(tmp_path: Path) -> Path:
    """File of a small PSPNet that trains for two iterations on ``ade_root``."""
    return write_config(tmp_path / 'tiny_pspnet.py', SEG_CONFIG)


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Run a tool in this process, which saves the imports, with ``tmp_path`` as its folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')

    def tool(name, *arguments) -> None:
        # A process has one visualizer of a name in each class; each run needs its own.
        for kind in (Visualizer, *Visualizer.__subclasses__()):
            kind._instance_dict.clear()
        path = str(REPOSITORY / 'tools' / name)
        monkeypatch.setattr(sys, 'argv', [path, *map(str, arguments)])
        runpy.run_path(path, run_name='__main__')

    return tool
