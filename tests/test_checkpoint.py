import json

import pytest
import torch
from golden import FOLDER, GOLDEN_VARIANTS, authors_state_dict
from mmengine.runner import load_checkpoint
from tiny import TINY

from mmmobilemamba import MobileMamba, checkpoint
from mmmobilemamba.checkpoint import (
    CheckpointError,
    authors_key,
    guess_arch,
    to_authors_checkpoint,
    to_authors_layout,
)


@pytest.fixture
def t2():
    return authors_state_dict('t2')


def pretrained(path, **options):
    prefix = options.pop('prefix', None)
    init_cfg = dict(type='Pretrained', checkpoint=str(path), **({'prefix': prefix} if prefix else {}))
    model = MobileMamba(**{'arch': 't2', **options}, init_cfg=init_cfg)
    model.init_weights()
    return model


def save(content, path):
    torch.save(content, path)
    return path


@pytest.mark.parametrize('variant', GOLDEN_VARIANTS)
def test_every_key_of_the_authors_is_written_back_exactly(variant):
    keys = json.loads((FOLDER / f'keys_{variant}.json').read_text())
    tensors = authors_state_dict(variant)
    model = MobileMamba(variant)
    model.load_state_dict(tensors)
    written = to_authors_layout(model.state_dict())
    assert {k: list(v.shape) for k, v in written.items()} == {
        k: shape for k, shape in keys.items() if not k.startswith('head')
    }
    for name, tensor in written.items():
        if name in tensors:
            assert torch.equal(tensor, tensors[name]), name
    twin = MobileMamba(variant)
    twin.load_state_dict(written)
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize('container', [None, 'net_E', 'net', 'state_dict', 'model'])
@pytest.mark.parametrize('module', ['', 'module.'])
def test_containers(container, module, t2, tmp_path):
    tensors = {module + k: v for k, v in t2.items()}
    model = pretrained(save({container: tensors} if container else tensors, tmp_path / 'c.pth'))
    assert torch.equal(model.stem[0].conv.weight, t2['patch_embed.0.c.weight'])
    last = t2['blocks3.4.mixer.m.attn.proj.1.c.weight']
    assert torch.equal(model.stage3.blocks[1].mixer.proj.conv.weight, last)


def test_the_averaged_copy_is_preferred(t2, tmp_path):
    other = {k: torch.zeros_like(v) for k, v in t2.items()}
    model = pretrained(save({'net': other, 'net_E': t2}, tmp_path / 'c.pth'))
    assert torch.equal(model.stem[0].conv.weight, t2['patch_embed.0.c.weight'])


def test_distilled_head_and_unbuilt_stage_are_knowingly_left_out(t2, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(checkpoint, 'print_log', lambda text, logger: said.append(text))
    t2['head_dist.l.weight'] = t2['head.l.weight']
    model = pretrained(save(t2, tmp_path / 'c.pth'), out_indices=(1, 2))
    assert model.num_stages == 2
    assert 'not needed by this model: blocks3, head, head_dist' in said[0]
    # The same from a whole checkpoint in our layout.
    model.load_state_dict({**MobileMamba('t2').state_dict()})


def test_backbone_of_a_detector(t2, tmp_path):
    tensors = {f'backbone.{k}': v for k, v in t2.items() if not k.startswith('head')}
    tensors['bbox_head.weight'] = torch.zeros(1)
    path = save({'meta': {}, 'state_dict': tensors}, tmp_path / 'detector.pth')
    assert torch.equal(pretrained(path, prefix='backbone.').stem[0].conv.weight, t2['patch_embed.0.c.weight'])
    with pytest.raises(CheckpointError, match='add prefix="backbone."'):
        pretrained(path)


class Detector(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = MobileMamba('t2')
        self.head = torch.nn.Linear(2, 2)


def test_mmengine_load_checkpoint_into_a_whole_model(t2, tmp_path):
    model = Detector()
    tensors = {f'backbone.{k}': v for k, v in t2.items() if not k.startswith('head')}
    path = save(
        {'state_dict': {**tensors, **{f'head.{k}': v for k, v in model.head.state_dict().items()}}},
        tmp_path / 'c.pth',
    )
    load_checkpoint(model, str(path), strict=True)
    assert torch.equal(model.backbone.stem[0].conv.weight, t2['patch_embed.0.c.weight'])


def test_a_classification_file_for_a_whole_model_is_refused(t2, tmp_path):
    with pytest.raises(CheckpointError, match="No key begins with 'backbone.'.*give it to the backbone"):
        load_checkpoint(Detector(), str(save(t2, tmp_path / 'c.pth')))


def test_another_variant_is_named():
    with pytest.raises(CheckpointError, match="shapes are those of arch 't4', the model is 't2'"):
        MobileMamba('t2').load_state_dict(authors_state_dict('t4'))
    with pytest.raises(CheckpointError, match="shapes are those of arch 'b1/b2/b4', the model is 't2'"):
        MobileMamba('t2').load_state_dict(MobileMamba('b1').state_dict())
    assert guess_arch(authors_state_dict('s6')) == 's6'


@pytest.mark.parametrize('strict', [True, False])
def test_missing_unknown_and_misshapen_keys_are_named(t2, strict):
    del t2['blocks1.0.dw0.m.c.weight']
    t2['blocks1.0.stranger'] = torch.zeros(1)
    t2['patch_embed.0.c.weight'] = torch.zeros(18, 4, 3, 3)
    with pytest.raises(CheckpointError) as error:
        MobileMamba('t2').load_state_dict(t2, strict=strict)
    text = str(error.value)
    assert '1 keys of the model are not in the checkpoint: stage1.blocks.0.dw_in.conv.weight' in text
    assert '1 keys of the checkpoint are not in the model: blocks1.0.stranger' in text
    assert 'stem.0.conv.weight ((18, 4, 3, 3) in the checkpoint, (18, 3, 3, 3) in the model)' in text


def test_another_wavelet_is_refused(t2):
    t2['blocks1.0.mixer.m.attn.global_op.wt_filter'] = torch.ones(448, 1, 2, 2)
    with pytest.raises(CheckpointError, match="not the filter of the model's wavelet 'haar'"):
        MobileMamba('t2').load_state_dict(t2)


def test_convert_checkpoint_tool(tmp_path, tool, t2, capsys):
    model = MobileMamba('t2')
    model.load_state_dict(t2)
    tensors = {f'backbone.{k}': v for k, v in model.state_dict().items()}
    tensors['neck.weight'] = torch.ones(2)
    source = save({'state_dict': tensors, 'meta': {}}, tmp_path / 'ours.pth')
    tool('convert_checkpoint.py', source, 'theirs.pth')
    written = torch.load(tmp_path / 'theirs.pth', weights_only=True)['state_dict']
    assert torch.equal(written.pop('neck.weight'), torch.ones(2))
    assert set(written) == {
        f'backbone.{k}' for k in json.loads((FOLDER / 'keys_t2.json').read_text()) if not k.startswith('head')
    }
    with pytest.raises(SystemExit, match='2'):
        tool('convert_checkpoint.py', source, 'theirs.pth')
    assert 'exists already' in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="in the authors' layout already"):
        to_authors_checkpoint({'state_dict': written})
    with pytest.raises(CheckpointError, match='no MobileMamba found'):
        to_authors_checkpoint({'weight': torch.ones(1)})
    folded = MobileMamba(TINY).eval()
    folded.switch_to_deploy()
    with pytest.raises(CheckpointError, match='convert the checkpoint it was folded from'):
        to_authors_checkpoint(folded.state_dict())


@pytest.mark.parametrize('config', ["wavelet='db2'", "'wavelet': 'db2'"])
def test_wavelet_of_the_config(config):
    model = MobileMamba({**TINY, 'wavelet': 'db2'})
    ours = {f'backbone.{k}': v for k, v in model.state_dict().items()}
    checkpoint = to_authors_checkpoint({'state_dict': ours, 'meta': {'cfg': f'arch = dict({config})'}})
    model.load_state_dict({k.removeprefix('backbone.'): v for k, v in checkpoint['state_dict'].items()})
    with pytest.raises(CheckpointError):
        MobileMamba(TINY).load_state_dict(to_authors_checkpoint(model.state_dict(), 'db2'))


def test_authors_key_is_one_to_one():
    keys = list(MobileMamba('b1').state_dict())
    assert len({authors_key(key) for key in keys}) == len(keys)
