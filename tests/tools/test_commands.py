"""What the README files tell to type can be typed."""

import os
import re
import subprocess
import sys

import pytest
from tiny import REPOSITORY, make_checkpoint

FOLDERS = ('.', 'configs/det', 'configs/seg', 'tools/analysis')
PAGES = sorted(page for folder in FOLDERS for page in (REPOSITORY / folder).glob('*.md'))
COMMANDS = sorted(p for p in (REPOSITORY / 'tools').rglob('*') if p.suffix in ('.py', '.sh'))


@pytest.mark.parametrize('command', COMMANDS, ids=lambda p: p.name)
def test_tools_are_executable(command):
    assert os.access(command, os.X_OK)
    assert command.read_text().startswith(
        f'#!/usr/bin/env {dict(py="python3", sh="bash")[command.suffix[1:]]}\n'
    )


@pytest.mark.parametrize('page', PAGES, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_files_of_the_pages_exist(page):
    files = re.findall(r'\b(?:tools|configs|tests)/[\w/.]*\w', page.read_text())
    links = re.findall(r'\]\((?!https?:)([^)#]+)', page.read_text())
    missing = [f for f in files if not (REPOSITORY / f).exists()]
    missing += [f for f in links if not (page.parent / f).exists()]
    assert not missing


PRELUDE = """
import runpy, sys
absent, commands, *sys.argv = sys.argv[1].split(), sys.argv[2].split(), *sys.argv[3:]
sys.modules |= dict.fromkeys(absent)
arguments = sys.argv
for command in commands:
    sys.argv = [command, '--help']
    try:
        runpy.run_path(command, run_name='__main__')
    except SystemExit as end:
        assert not end.code, command
sys.argv = arguments
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.mark.parametrize(
    ('absent', 'config', 'classes', 'image'),
    [
        ('mmdet pycocotools', 'seg_config', 150, 'ade_root/images/validation/000.jpg'),
        ('mmseg', 'det_config', 80, 'coco_root/val2017/000000.jpg'),
    ],
)
def test_one_task_needs_no_package_of_the_other(tmp_path, request, absent, config, classes, image):
    """All tools start, and one predicts."""
    fixture, _, path = image.partition('/')
    config = request.getfixturevalue(config)
    checkpoint = make_checkpoint(config, tuple(map(str, range(classes))), tmp_path / 'x.pth')
    tools = ' '.join(str(command) for command in COMMANDS if command.suffix == '.py')
    infer = (REPOSITORY / 'tools/infer.py', config, checkpoint, request.getfixturevalue(fixture) / path)
    words = (sys.executable, '-c', PRELUDE, absent, tools, *infer, '--device', 'cpu')
    ran = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert '1 of 1 images predicted' in ran.stdout
