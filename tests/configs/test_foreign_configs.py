"""The backbone in configs of the installed packages, by the lines that the README shows."""

import re

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from test_published import build, sample
from tiny import REPOSITORY

from mmmobilemamba.engine import check_channels

README = (REPOSITORY / 'README.md').read_text()
LINES = re.search(r"```python\n(_base_ = 'mmdet::fcos.*?)```", README, re.DOTALL)[1]
BASE, NECK = LINES.splitlines()[0], next(line for line in LINES.splitlines() if 'neck=' in line)


def with_another_base(base: str, difference: str) -> str:
    """The lines of the README for a row of the table below them."""
    lines = LINES.replace(BASE, f'_base_ = {base!r}')
    given = re.search('`(.*)`', difference)
    if given and 'instead of the neck' in difference:
        return lines.replace(NECK, f'    {given[1]},')
    if given:
        name = given[1].split('=')[0]
        lines, count = re.subn(rf'{name}=\d+', given[1], lines)
        assert count == 1
    return lines


ROWS = re.findall(r'^\| `(mm\w+::\S+)` \| (.*) \|$', README, re.MULTILINE)
CONFIGS = {'fcos': LINES} | {base.split('/')[1].split('_')[0]: with_another_base(base, d) for base, d in ROWS}


def test_readme_shows_what_is_tested():
    assert list(CONFIGS) == ['fcos', 'atss', 'faster-rcnn', 'upernet']


@pytest.mark.parametrize('name', CONFIGS)
def test_config_takes_the_backbone(name, tmp_path):
    torch.manual_seed(0)
    path = tmp_path / 'config.py'
    path.write_text(CONFIGS[name])
    cfg = Config.fromfile(path)
    check_channels(cfg)
    size = (96, 128)
    if cfg.default_scope == 'mmseg':  # or it would pad to 512x512
        cfg.model.data_preprocessor.size = size
    model = revert_sync_batchnorm(build(cfg)).train()
    data = dict(
        inputs=[torch.randint(0, 256, (3, *size), dtype=torch.uint8) for _ in range(2)],
        data_samples=[sample(cfg, size) for _ in range(2)],
    )
    inputs = model.data_preprocessor(data, training=True)
    loss, _ = model.parse_losses(model(**inputs, mode='loss'))
    loss.backward()
    gradients = [p.grad for p in model.backbone.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    assert any(g.abs().sum() > 0 for g in gradients)
    with torch.no_grad():
        results = model.eval().test_step(data)
    assert len(results) == 2
