"""What the README files tell to type can be typed."""

import os
import re

import pytest
from tiny import REPOSITORY

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
