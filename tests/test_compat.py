from importlib.metadata import PackageNotFoundError

import pytest
from mmengine.config import utils

from mmmobilemamba import compat


@pytest.mark.parametrize('present, expected', [(True, 'mmseg'), (False, 'mmsegmentation')])
def test_mmseg_of_the_fork_is_found_by_its_module(monkeypatch, present, expected):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setitem(utils.MODULE2PACKAGE, 'mmseg', 'mmsegmentation')
    monkeypatch.setattr(compat, 'distribution', missing)
    monkeypatch.setattr(compat, 'find_spec', lambda name: object() if present else None)
    compat.find_mmseg_configs()
    assert utils.MODULE2PACKAGE['mmseg'] == expected
