"""What mim reads (model-index.yml and the metafiles) says the same as the configs and their tables."""

from pathlib import Path

import pytest
import yaml
from cases import CASES
from tiny import REPOSITORY

from mmmobilemamba.engine import load_config


def read(name: str) -> dict:
    return yaml.safe_load((REPOSITORY / name).read_text())


METAFILES = [read(name) for name in read('model-index.yml')['Import']]
MODELS = [model for metafile in METAFILES for model in metafile['Models']]


def published_in_table(config: Path) -> dict[str, float]:
    """The figures marked as published in a config's row of the first table of its README."""
    lines = (config.parent / 'README.md').read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in lines if line.startswith('|')]
    (row,) = (row for row in rows if f']({config.name})' in row[0])
    cells = dict(zip(rows[0], row, strict=True))
    return {
        name: float(cells[name].removesuffix('*'))
        for name in ('box AP', 'mask AP', 'mIoU')
        if cells.get(name, '').endswith('*')
    }


def test_every_config_has_an_entry():
    assert sorted(model['Config'] for model in MODELS) == sorted(f'configs/{case.name}.py' for case in CASES)


def test_collections_are_complete():
    for metafile in METAFILES:
        collections = {c['Name']: c for c in metafile['Collections']}
        assert {model['In Collection'] for model in metafile['Models']} == set(collections)
        assert all((REPOSITORY / c['README']).is_file() for c in collections.values())


@pytest.mark.parametrize('model', MODELS, ids=lambda model: model['Name'])
def test_entry_agrees_with_config_and_table(model):
    config = REPOSITORY / model['Config']
    assert model['Name'] == config.stem
    metrics = {}
    for result in model['Results']:
        metrics |= result['Metrics']
    assert metrics == published_in_table(config)
    loop = load_config(str(config)).train_cfg
    length = {'Epochs': loop.get('max_epochs'), 'Iterations': loop.get('max_iters')}
    assert model['Metadata'] == {name: n for name, n in length.items() if n}
