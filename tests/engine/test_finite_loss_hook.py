import pytest
import torch
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.structures import BaseDataElement

from mmmobilemamba.engine import FiniteLossHook
from mmmobilemamba.errors import UserError

NAN, INF = float('nan'), float('inf')


class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(self, inputs, data_samples, mode):
        loss = self.weight.sum() * inputs[0]
        return dict(loss_cls=loss[0], loss_bbox=[loss[1], loss[2]], acc=loss.new_tensor(NAN))


class FakeRunner:
    iter, epoch, max_epochs = 37, 1, 12

    def __init__(self, model):
        self.model = model


def step(model, *losses):
    samples = [BaseDataElement(metainfo=dict(img_path=f'{name}.jpg')) for name in 'ab']
    module = getattr(model, 'module', model)
    wrapper = OptimWrapper(torch.optim.SGD(module.parameters(), lr=0.1))
    return model.train_step(dict(inputs=[torch.tensor(losses)], data_samples=samples), wrapper)


@pytest.fixture(params=['alone', 'distributed'])
def model(request):
    model = Model()
    if request.param == 'distributed':
        torch.distributed.init_process_group(
            'gloo', store=torch.distributed.HashStore(), rank=0, world_size=1
        )
        model = MMDistributedDataParallel(model)
    hook = FiniteLossHook()
    hook.before_train(FakeRunner(model))
    yield model
    hook.after_train(None)
    if request.param == 'distributed':
        # The last to hold the group, they would wait for its threads with Python's lock, which those want.
        del model.logger, model.reducer
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    'losses, told',
    [
        ((NAN, 1, 1), 'loss_cls is nan'),
        ((1, 1, -INF), r'loss_bbox\[1\] is -inf'),
        ((INF, NAN, 1), r'loss_cls is inf, loss_bbox\[0\] is nan'),
    ],
)
def test_stops_before_the_step(model, losses, told):
    with pytest.raises(UserError, match=rf'iteration 38 \(epoch 2\).*: {told}\. Images: a.jpg, b.jpg'):
        step(model, *losses)
    assert all((x == 1).all() and x.grad is None for x in model.parameters())


def test_finite_losses_pass(model):
    step(model, 1.0, 2.0, 3.0)
    assert all((x != 1).all() for x in model.parameters())


def test_weights_spoilt_before(model):
    next(model.parameters()).data.fill_(NAN)
    with pytest.raises(UserError, match='The step before has spoilt the weights: weight.*older checkpoint'):
        step(model, 1.0, 1.0, 1.0)


@pytest.mark.parametrize('task', ['det', 'seg'])
def test_every_training_is_watched(request, tool, task):
    layout, loss = dict(det=('coco', 'bbox_head.loss_bbox'), seg=('ade', 'auxiliary_head.loss_decode'))[task]
    config, root = (request.getfixturevalue(name) for name in (f'{task}_config', f'{layout}_root'))
    with pytest.raises(SystemExit) as caught:
        # Beyond the largest number of float32.
        tool('train.py', config, '--data-root', root, '--cfg-options', f'model.{loss}.loss_weight=1e39')
    said = caught.value.code
    assert 'iteration 1 is not finite' in said
    assert ('loss_bbox[0] is inf' if task == 'det' else 'aux.loss_ce is inf') in said
    assert said.count('.jpg') == 2
