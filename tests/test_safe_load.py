"""Files that torch writes, read by torch's own restricted unpickler and by the one for older versions."""

import functools
import http.server
import os
import pickle
import threading

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub

from mmmobilemamba import safe_load as module
from mmmobilemamba.safe_load import allow_mmengine_checkpoints, safe_load


@pytest.fixture(params=[True, False], ids=['torch>=2.6', 'torch<2.6'])
def new_torch(request, monkeypatch, tmp_path):
    if request.param and not module.WEIGHTS_ONLY_IS_ENOUGH:
        pytest.skip('torch is older')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, 'WEIGHTS_ONLY_IS_ENOUGH', request.param)
    if not request.param:
        # Torch 2.1 to 2.3 have no such list, and 2.4 and 2.5 one that holds no names.
        monkeypatch.delattr(torch.serialization, 'add_safe_globals', raising=False)
    return request.param


class Code:
    def __init__(self, function, *arguments):
        self.made_by = function, arguments

    def __reduce__(self):
        return self.made_by


@pytest.fixture
def checkpoint():
    """What mmengine writes of a training."""
    hub = MessageHub('test_safe_load')
    for i in range(5):
        hub.update_scalar('train/loss', 1.5 * i)
    hub.update_info('iter', 5)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).to(torch.bfloat16)
    optimizer = torch.optim.AdamW(net.parameters())
    net(torch.rand(2, 3, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    return dict(
        meta=dict(seed=1, dataset_meta=dict(classes=('a', 'b'), palette=[(1, 2, 3)]), best=np.float64(0.5)),
        state_dict=net.state_dict(),
        optimizer=optimizer.state_dict(),
        message_hub=hub.state_dict(),
    )


@pytest.mark.parametrize('zipped', [True, False])
def test_checkpoint_of_mmengine(new_torch, checkpoint, zipped):
    torch.save(checkpoint, 'x.pth', _use_new_zipfile_serialization=zipped)
    allow_mmengine_checkpoints()
    found = safe_load('x.pth')
    assert found.keys() == checkpoint.keys() and found['meta'] == checkpoint['meta']
    assert torch.equal(found['state_dict']['0.weight'], checkpoint['state_dict']['0.weight'])
    average = found['optimizer']['state'][0]['exp_avg']
    assert torch.equal(average, checkpoint['optimizer']['state'][0]['exp_avg'])
    history = found['message_hub']['log_scalars']['train/loss']
    assert isinstance(history, HistoryBuffer) and history.statistics('max', 9) == 6 and history.mean() == 3


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize(
    'content',
    [
        Code(os.mkdir, 'executed'),
        Code(getattr, HistoryBuffer, '__init__'),
        Code(getattr, dict, 'get'),
        # Of a module that a name of Python 2 stands for.
        Code(eval, 'open("executed", "w")'),
    ],
    ids=['os', 'method', 'class', 'builtin'],
)
def test_all_else_is_refused(new_torch, tmp_path, content, zipped):
    torch.save({'state_dict': content}, 'x.pth', _use_new_zipfile_serialization=zipped)
    with pytest.raises(pickle.UnpicklingError):
        safe_load('x.pth')
    assert [path.name for path in tmp_path.iterdir()] == ['x.pth']


def test_attributes_of_a_class_are_not_set(new_torch):
    program = b'\x80\x02ctorch\nTensor\nN}U\x03addctorch\nSize\ns\x86b.'
    writer = torch._C.PyTorchFileWriter('x.pth')
    writer.write_record('data.pkl', program, len(program))
    writer.write_end_of_file()
    with pytest.raises(pickle.UnpicklingError):
        safe_load('x.pth')
    assert torch.Tensor.add is not torch.Size


@pytest.mark.filterwarnings('ignore')
def test_programs_are_refused(new_torch):
    torch.jit.script(torch.nn.Linear(2, 2)).save('x.pth')
    with pytest.raises((pickle.UnpicklingError, RuntimeError), match='TorchScript'):
        safe_load('x.pth')


@pytest.fixture
def address(tmp_path):
    """Of a server on this machine of the files in ``tmp_path``."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()
        thread.join()


def test_addresses(new_torch, address, tmp_path, checkpoint, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'hub'))
    torch.save(checkpoint, 'fine.pth')
    assert safe_load(f'{address}/fine.pth').keys() == checkpoint.keys()
    torch.save(Code(os.mkdir, 'executed'), 'code.pth')
    with pytest.raises(pickle.UnpicklingError):
        safe_load(f'{address}/code.pth')
    assert not (tmp_path / 'executed').exists()
