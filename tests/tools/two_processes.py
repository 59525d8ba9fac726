"""Run in each of two processes by test_train_test.py: training steps against one process with all images.

The losses of detectors are divided by the number of positive anchors of the process. So the mean over
processes, which is what DistributedDataParallel computes, is the loss of the whole batch exactly when all
processes have as many: here both see the same boxes, in other images. All is computed in float64, for the
normalisation of small maps makes much of the rounding of float32.
"""

import copy
import json
import sys
from pathlib import Path

import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODEL_WRAPPERS, MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmmobilemamba import engine

CONFIGS = Path(__file__).parents[2] / 'configs'
SIZE = 64
BOXES = torch.tensor([[4.0, 6, 36, 30], [20, 24, 60, 58]])
MODELS_TRAINED = {
    'det/retinanet_mobilemamba.py': {},
    'det/ssdlite_mobilemamba.py': {},
    'seg/semantic_fpn_mobilemamba.py': {
        'model.data_preprocessor.size': (SIZE, SIZE),
        'model.decode_head.dropout_ratio': 0,
        # Gradient checkpointing runs a part of the model again amid the reduction of the gradients.
        'model.backbone.with_cp': True,
    },
}


def make_batch(scope: str) -> dict[str, list]:
    """Two images for each of two processes."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (4, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    return dict(inputs=list(images), data_samples=[make_sample(scope, i % 2) for i in range(4)])


def make_sample(scope: str, i: int) -> DetDataSample | SegDataSample:
    meta = dict(
        img_shape=(SIZE, SIZE), ori_shape=(SIZE, SIZE), pad_shape=(SIZE, SIZE), scale_factor=(1.0, 1.0)
    )
    if scope == 'mmdet':
        sample = DetDataSample(metainfo=meta)
        sample.gt_instances = InstanceData(bboxes=BOXES[i:], labels=torch.arange(len(BOXES))[i:])
    else:
        sample = SegDataSample(metainfo=meta)
        labels = torch.arange(SIZE * SIZE).reshape(1, SIZE, SIZE) // 997 % 150
        sample.gt_sem_seg = PixelData(data=labels + i)
    return sample


def build(cfg: Config) -> nn.Module:
    """The detector or segmentor of a config, with frozen batch norms and no branch that begins silent."""
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).train().double()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
            nn.init.ones_(module.weight)
    return model


def losses_and_gradients(model: nn.Module, batch: dict[str, list]) -> tuple[Tensor, dict[str, Tensor]]:
    inner = getattr(model, 'module', model)
    model.zero_grad()
    data = inner.data_preprocessor(copy.deepcopy(batch), training=True)
    data['inputs'] = data['inputs'].double()
    loss, _ = inner.parse_losses(model(**data, mode='loss'))
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in inner.named_parameters() if p.requires_grad}


def compare(cfg: Config) -> tuple[float, float, dict[str, float]] | None:
    """The loss of two processes with two images each and that of one process with all four, and how far
    the gradient of each parameter differs, in relation to its largest entry; in the first process."""
    batch, rank = make_batch(cfg.default_scope), torch.distributed.get_rank()
    if rank == 0:
        loss_of_all, expected = losses_and_gradients(build(cfg), batch)
    model = MODEL_WRAPPERS.build(dict(cfg.model_wrapper_cfg, module=build(cfg)))
    own = {key: values[2 * rank : 2 * rank + 2] for key, values in batch.items()}
    # A parameter without a gradient is noticed in the step after.
    for _ in range(2):
        loss, gradients = losses_and_gradients(model, own)
    torch.distributed.all_reduce(loss)
    if rank > 0:
        return None
    # Gradients that are zero but for rounding, as of a bias before a softmax, are measured by the largest.
    negligible = 1e-9 * max(gradient.abs().max() for gradient in expected.values())
    differences = {
        name: ((gradients[name] - gradient).abs().max() / (gradient.abs().max() + negligible)).item()
        for name, gradient in expected.items()
    }
    return loss.item() / 2, loss_of_all.item(), differences


def main() -> None:
    torch.set_num_threads(1)
    found = {}
    for name, options in MODELS_TRAINED.items():
        cfg = engine.load_config(str(CONFIGS / name), options, arch='t2')
        engine.init_processes(cfg, 'pytorch')
        found[name] = compare(cfg)
    if torch.distributed.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == '__main__':
    main()
