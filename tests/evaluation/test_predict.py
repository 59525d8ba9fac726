import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, TRANSFORMS
from tiny import CLASSES, make_checkpoint

from mmmobilemamba.datasets import retarget
from mmmobilemamba.errors import UserError
from mmmobilemamba.evaluation.images import ImageFile
from mmmobilemamba.evaluation.load import load_model
from mmmobilemamba.evaluation.predict import predict
from mmmobilemamba.evaluation.resolution import set_test_scale, test_scale


@pytest.fixture
def cfg(det_config, coco_root):
    return retarget(Config.fromfile(det_config), coco_root)


def with_classes_as_types(cfg: Config) -> Config:
    """As MMEngine's newer style of configs has them."""
    dataset = cfg.test_dataloader.dataset
    for node, registry in ((dataset, DATASETS), *((step, TRANSFORMS) for step in dataset.pipeline)):
        with registry.switch_scope_and_registry(cfg.default_scope) as scoped:
            node.type = scoped.get(node.type)
            assert isinstance(node.type, type)
    return cfg


def test_types_that_are_classes_predict_the_same(tmp_path, cfg, det_config, coco_root):
    checkpoint = str(make_checkpoint(det_config, CLASSES, tmp_path / 'x.pth'))
    image = ImageFile(coco_root / 'val2017/000000.jpg', 'x')
    named, classed = (
        next(predict(load_model(c, checkpoint, classes_from_data=True), [image]))[2].pred_instances
        for c in (cfg, with_classes_as_types(cfg.copy()))
    )
    assert len(named) > 0
    torch.testing.assert_close(named.bboxes, classed.bboxes, rtol=0, atol=0)


def test_other_ways_to_read_an_image(tmp_path, cfg, det_config, coco_root):
    model = load_model(cfg, str(make_checkpoint(det_config, CLASSES, tmp_path / 'x.pth')))
    image = ImageFile(coco_root / 'val2017/000000.jpg', 'x')
    loading = model.cfg.test_dataloader.dataset.pipeline[0]
    loading.to_float32 = True
    assert len(next(predict(model, [image]))[2].pred_instances) > 0
    loading.type = 'LoadMultiChannelImageFromFiles'
    with pytest.raises(UserError, match="begins with 'LoadMultiChannelImageFromFiles'.*LoadImageFromFile"):
        next(predict(model, [image]))


def test_grey_images(tmp_path, det_config, coco_root):
    config = tmp_path / 'grey.py'
    config.write_text(
        f'_base_ = {str(det_config)!r}\n'
        'model = dict(\n    backbone=dict(in_channels=1),\n'
        '    data_preprocessor=dict(mean=[120.0], std=[60.0], bgr_to_rgb=False),\n)'
    )
    model = load_model(Config.fromfile(config), str(make_checkpoint(config, CLASSES, tmp_path / 'x.pth')))
    model.cfg.test_dataloader.dataset.pipeline[0].color_type = 'grayscale'
    _, image, sample = next(predict(model, [ImageFile(coco_root / 'val2017/000000.jpg', 'x')]))
    assert image.shape[2] == 3 and (image[..., 0] == image[..., 1]).all()
    assert len(sample.pred_instances) > 0


def test_the_size_of_a_pipeline_of_classes(cfg):
    cfg = with_classes_as_types(cfg)
    set_test_scale(cfg, (128, 96))
    assert test_scale(cfg) == (128, 96)
