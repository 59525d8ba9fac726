import pytest
from mmengine.config import Config
from torch import nn

from mmmobilemamba.engine.config_nodes import innermost_test_dataset, type_name
from mmmobilemamba.errors import UserError


@pytest.mark.parametrize('kind', ['Conv2d', 'scope.Conv2d', nn.Conv2d])
def test_a_type_is_a_name_or_a_class(kind):
    assert type_name(dict(type=kind)) == 'Conv2d'
    assert type_name({}) == ''


def test_the_data_set_inside_wrappers():
    inner = dict(type='CocoDataset', pipeline=[])
    wrapped = dict(type='RepeatDataset', dataset=dict(type='ClassBalancedDataset', dataset=inner))
    cfg = Config(dict(test_dataloader=dict(dataset=wrapped)))
    innermost_test_dataset(cfg).pipeline = ['changed']
    assert cfg.test_dataloader.dataset.dataset.dataset.pipeline == ['changed']


@pytest.mark.parametrize(
    'content', [{}, {'test_dataloader': None}, {'test_dataloader': {'dataset': {'datasets': [{}, {}]}}}]
)
def test_several_data_sets_or_none_are_refused(content):
    with pytest.raises(UserError, match='one data set in the test_dataloader'):
        innermost_test_dataset(Config(content))
