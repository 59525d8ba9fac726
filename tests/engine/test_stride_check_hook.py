"""Heads that are set for other strides than those of their maps."""

import copy
from types import SimpleNamespace

import pytest
import torch
from tiny import TINY, build_retinanet
from torch import nn

from mmmobilemamba.engine.stride_check_hook import StrideCheckHook
from mmmobilemamba.errors import UserError


def check(model: nn.Module) -> None:
    StrideCheckHook().before_train(SimpleNamespace(model=model))


def test_right_strides_pass_and_the_model_stays_as_it_is():
    model = build_retinanet(TINY, frozen_stages=1).train()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    check(nn.ModuleDict(dict(module=model)))
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize('strides', [[4, 8, 16, 32], [16, 32, 64, 128], [8, 16, 32, 32]])
def test_others_are_refused(strides):
    with pytest.raises(UserError, match=r'bbox_head, .*is given maps of strides \[8, 16, 32, 64\]') as error:
        check(build_retinanet(TINY, strides=strides))
    assert str(strides) in str(error.value) and 'which gives strides [16, 32, 64]' in str(error.value)


def test_last_maps_of_one_pixel_and_rounded_strides_as_of_ssd():
    check(build_retinanet(TINY, strides=[8, 16, 32, 64, 107, 213, 640]))


def test_generators_of_heads_that_learn_their_anchors():
    model = build_retinanet(TINY, strides=[4, 8, 16, 32])
    model.bbox_head.square_anchor_generator = model.bbox_head.prior_generator
    del model.bbox_head.prior_generator
    with pytest.raises(UserError, match=r'bbox_head, in its anchor or point generator.*\[4, 8, 16, 32\]'):
        check(model)


@pytest.mark.parametrize('name', ['bbox_roi_extractor', 'semantic_roi_extractor'])
def test_extractors(name):
    model = build_retinanet(TINY)
    extractor = nn.Identity()
    extractor.featmap_strides = [4, 8]
    model.add_module(name, extractor)
    if name.startswith('semantic'):
        check(model)
    else:
        with pytest.raises(UserError, match=r'featmap_strides of bbox_roi_extractor .*\[4, 8\]'):
            check(model)


def test_models_without_strides():
    check(nn.ModuleDict(dict(backbone=build_retinanet(TINY).backbone)))
