import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image

from mmmobilemamba.datasets import check_data_exists, coco_layout, retarget
from mmmobilemamba.datasets.data_root import make_palette
from mmmobilemamba.errors import UserError

LOAD_BOXES = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
LOAD_MAPS = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]


def det_config() -> Config:
    def dataset(split, **options):
        return dict(
            type='CocoDataset',
            data_root='data/coco/',
            ann_file=f'annotations/instances_{split}.json',
            data_prefix=dict(img=f'{split}/'),
            pipeline=LOAD_BOXES,
            **options,
        )

    train = dataset('a', filter_cfg=dict(filter_empty_gt=True, min_size=32))
    test = dict(dataset=dataset('b', test_mode=True))
    evaluator = dict(type='CocoMetric', ann_file='data/coco/annotations/instances_b.json')
    return Config(
        dict(
            default_scope='mmdet',
            data_root='data/coco/',
            model=dict(
                backbone=dict(type='ResNet', num_classes=1000),
                bbox_head=dict(type='RetinaHead', num_classes=80),
            ),
            train_dataloader=dict(dataset=train),
            val_dataloader=test,
            test_dataloader=test,
            val_evaluator=evaluator,
            test_evaluator=[evaluator, dict(type='DumpDetResults', out_file_path='x.pkl')],
        )
    )


def seg_config() -> Config:
    def loader(split):
        return dict(
            dataset=dict(
                type='ADE20KDataset',
                data_root='data/ade',
                data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}'),
                pipeline=LOAD_MAPS,
            )
        )

    return Config(
        dict(
            default_scope='mmseg',
            model=dict(
                decode_head=dict(type='PSPHead', num_classes=150),
                auxiliary_head=[dict(type='FCNHead', num_classes=150)],
            ),
            train_dataloader=loader('training'),
            val_dataloader=loader('validation'),
            test_dataloader=loader('validation'),
            val_evaluator=dict(type='IoUMetric'),
            test_evaluator=dict(type='IoUMetric'),
        )
    )


def edit_json(root: Path, change: Callable[[dict], None], split: str = 'train') -> None:
    path = root / f'annotations/instances_{split}2017.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


class TestDetection:
    def test_data_sets_give_the_new_images_and_labels(self, coco_root):
        cfg = retarget(det_config(), coco_root)
        init_default_scope('mmdet')
        for loader, count in (('train_dataloader', 4), ('val_dataloader', 2)):
            dataset = DATASETS.build(cfg[loader].dataset)
            assert len(dataset) == count
            assert dataset.metainfo['classes'] == ('square', 'stripe')
            assert len(dataset.metainfo['palette']) == 2
            first = dataset[0]
            assert first['img'].shape == (72, 64, 3)
            assert first['gt_bboxes_labels'].tolist() == [0, 1]

    def test_heads_evaluators_and_the_original(self, coco_root):
        cfg = det_config()
        before = cfg.pretty_text
        new = retarget(cfg, coco_root)
        assert cfg.pretty_text == before
        assert new.model.bbox_head.num_classes == 2
        assert new.model.backbone.num_classes == 1000
        ann_file = str(coco_root / 'annotations/instances_val2017.json')
        assert new.val_evaluator.ann_file == new.test_evaluator[0].ann_file == ann_file
        assert 'ann_file' not in new.test_evaluator[1]
        assert new.data_root == str(coco_root)

    def test_wrapped_data_sets_and_nested_heads(self, coco_root):
        cfg = det_config()
        leaf = cfg.train_dataloader.dataset
        cfg.train_dataloader.dataset = dict(
            type='MultiImageMixDataset',
            dataset=dict(
                type='RepeatDataset',
                times=2,
                dataset=dict(
                    type='ConcatDataset',
                    datasets=[leaf, dict(type='ClassBalancedDataset', dataset=leaf)],
                ),
            ),
        )
        cfg.model = dict(
            roi_head=dict(
                bbox_head=[dict(num_classes=80), dict(num_classes=80)],
                mask_head=dict(num_classes=80),
                semantic_head=dict(num_classes=183),
            )
        )
        new = retarget(cfg, coco_root)
        datasets = new.train_dataloader.dataset.dataset.dataset.datasets
        for dataset in (datasets[0], datasets[1].dataset):
            assert dataset.data_root == str(coco_root)
            assert dataset.metainfo.classes == ('square', 'stripe')
        head = new.model.roi_head
        heads = (*head.bbox_head, head.mask_head, head.semantic_head)
        assert [h.num_classes for h in heads] == [2, 2, 2, 2]

    def test_testing_needs_no_training_split(self, coco_root):
        (coco_root / 'annotations/instances_train2017.json').unlink()
        cfg = det_config()
        cfg.train_dataloader = None
        assert retarget(cfg, coco_root).model.bbox_head.num_classes == 2
        with pytest.raises(UserError, match='lacks annotations/instances_train2017.json'):
            retarget(det_config(), coco_root)

    @pytest.mark.parametrize(
        'change, message',
        [
            (lambda c: c.pop('images'), 'is not a COCO annotation file'),
            (lambda c: c['images'].clear(), "'images' of .* is empty"),
            (lambda c: c['annotations'].clear(), "'annotations' of .* is empty"),
            (lambda c: c['categories'].clear(), "'categories' of .* is empty"),
            (lambda c: c['images'][1].update(id=0), 'same id more than once: 0'),
            (lambda c: c['annotations'][3].update(id=1), 'same id more than once: 1'),
            (lambda c: c['categories'][1].update(id=1), 'same id more than once: 1'),
            (lambda c: c['categories'][1].update(name='square'), 'same name more than once: square'),
            (lambda c: c['images'][2].pop('width'), "have no 'width' \\(positions 2\\)"),
            (lambda c: c['images'][0].update(height=0), '"width" or "height" that is not'),
            (lambda c: c['annotations'][0].pop('area'), "have no 'area' \\(positions 0\\)"),
            (lambda c: c['annotations'][0].update(category_id=7), "'categories' does not list: 7"),
            (lambda c: c['annotations'][0].update(image_id=70), "'images' does not list: 70"),
            (lambda c: c['annotations'][4].update(bbox=[1, 2, 3]), 'four finite numbers .*ids 5'),
            (lambda c: c['annotations'][4].update(bbox=[1, 2, 'a', 4]), 'four finite numbers'),
            (lambda c: c['annotations'][4].update(area=float('nan')), 'four finite numbers'),
            (lambda c: [a.update(bbox=[0.1, 0.1, 0.5, 0.5]) for a in c['annotations']], 'in pixels'),
            (lambda c: [a.update(area=0) for a in c['annotations']], 'positive "area"'),
            (lambda c: [i.update(width=30) for i in c['images']], 'min_size in the filter_cfg'),
            (lambda c: c['images'][3].update(file_name='gone.jpg'), '1 of 4 .*: gone.jpg'),
            (lambda c: c['images'][3].update(width=97), 'is 96x80 pixels.* says 97x80'),
            (lambda c: c['categories'][1].update(name='x'), 'only in train: x; only in val: stripe'),
            (lambda c: c['categories'].append(dict(id=3, name='x')), 'only in train: x\\)'),
            (lambda c: c['categories'].reverse(), "position 0: 'stripe' in train, 'square' in val"),
        ],
    )
    def test_annotations_that_would_go_wrong_are_refused(self, coco_root, change, message):
        edit_json(coco_root, change)
        with pytest.raises(UserError, match=message):
            retarget(det_config(), coco_root)

    def test_category_of_val_only_is_refused(self, coco_root):
        edit_json(coco_root, lambda c: c['categories'].append(dict(id=3, name='x')), 'val')
        with pytest.raises(UserError, match='only in val: x'):
            retarget(det_config(), coco_root)

    def test_masks_are_needed_only_where_they_are_learned(self, coco_root):
        edit_json(coco_root, lambda c: c['annotations'][2].pop('segmentation'))
        cfg = det_config()
        retarget(cfg, coco_root)
        cfg.train_dataloader.dataset.pipeline[1].with_mask = True
        with pytest.raises(UserError, match='no "segmentation".*ids 3'):
            retarget(cfg, coco_root)

    def test_what_the_data_set_will_leave_out_is_said(self, coco_root, monkeypatch):
        said = []
        monkeypatch.setattr(coco_layout, 'print_log', lambda text, logger: said.append(text))
        edit_json(coco_root, lambda c: c['annotations'][0].update(bbox=[500, 2, 9, 9]))
        edit_json(coco_root, lambda c: c['annotations'][1].update(bbox=[40, 2, 60, 9]))
        edit_json(coco_root, lambda c: c['images'].append(dict(c['images'][0], id=9)))
        retarget(det_config(), coco_root)
        assert '1 of 8 boxes are left out' in said[0]
        assert '1 of 8 boxes reach beyond their image' in said[1]
        assert '4 of 5 images are used' in said[2]

    @pytest.mark.parametrize('text', ['{"images": [', '', '<html>'])
    def test_files_that_are_not_json_are_refused(self, coco_root, text):
        (coco_root / 'annotations/instances_val2017.json').write_text(text)
        with pytest.raises(UserError, match='val2017.json is not a JSON file'):
            retarget(det_config(), coco_root)

    def test_broken_image_is_refused(self, coco_root):
        (coco_root / 'val2017/000001.jpg').write_bytes(b'')
        with pytest.raises(UserError, match='1 of 2 images cannot be read as an image: .*000001.jpg'):
            retarget(det_config(), coco_root)

    def test_wrong_layout_lists_what_is_expected_and_found(self, tmp_path):
        with pytest.raises(UserError, match='not a folder(.|\n)*train2017/'):
            retarget(det_config(), tmp_path / 'nowhere')
        (tmp_path / 'photos').mkdir()
        with pytest.raises(UserError, match='lacks annotations/(.|\n)*val2017/(.|\n)*photos/'):
            retarget(det_config(), tmp_path)


class TestSegmentation:
    @pytest.mark.parametrize('suffix', ['.jpg', '.png'])
    def test_data_sets_give_the_new_images_and_labels(self, ade_root, suffix):
        for path in ade_root.glob('images/*/*.jpg'):
            path.rename(path.with_suffix(suffix))
        cfg = retarget(seg_config(), ade_root)
        init_default_scope('mmseg')
        for loader, count in (('train_dataloader', 4), ('val_dataloader', 2)):
            dataset = DATASETS.build(cfg[loader].dataset)
            assert len(dataset) == count
            assert dataset.metainfo['classes'] == ('background', 'square', 'stripe')
            labels = dataset[0]['data_samples'].gt_sem_seg.data
            assert set(np.unique(labels)) == {0, 1, 2, 255}
        assert cfg.model.decode_head.num_classes == 3
        assert cfg.model.auxiliary_head[0].num_classes == 3

    def test_testing_needs_no_training_split(self, ade_root):
        (ade_root / 'images/training').rename(ade_root / 'images/away')
        cfg = seg_config()
        cfg.train_dataloader = None
        assert retarget(cfg, ade_root).model.decode_head.num_classes == 3
        with pytest.raises(UserError, match='lacks images/training/'):
            retarget(seg_config(), ade_root)

    @pytest.mark.parametrize(
        'text, message',
        [
            ('a\n\nb\n', r'blank lines \(2\)'),
            ('a\nb\na\n', 'names a more than once'),
            ('a\n', 'names 1 classes'),
            ('\n'.join(map(str, range(255))), 'names 255 classes'),
            ('a\nb\n', 'holds 3, but classes.txt names only 2 classes'),
        ],
    )
    def test_wrong_class_lists_are_refused(self, ade_root, text, message):
        (ade_root / 'classes.txt').write_text(text)
        with pytest.raises(UserError, match=message):
            retarget(seg_config(), ade_root)

    def test_class_list_in_another_encoding_is_refused(self, ade_root):
        (ade_root / 'classes.txt').write_bytes(b'a\n\xff\n')
        with pytest.raises(UserError, match='not a text file in UTF-8'):
            retarget(seg_config(), ade_root)

    @pytest.mark.parametrize(
        'labels, message',
        [
            (np.full((72, 80), 9, np.uint8), 'holds 9'),
            (np.ones((72, 80, 3), np.uint8), 'mode RGB'),
            (np.ones((72, 81), np.uint8), 'is 81x72 pixels, its image .*001.jpg 80x72'),
        ],
    )
    def test_wrong_maps_are_refused(self, ade_root, labels, message):
        Image.fromarray(labels).save(ade_root / 'annotations/validation/001.png')
        with pytest.raises(UserError, match=message):
            retarget(seg_config(), ade_root)

    def test_missing_empty_and_mixed_files_are_refused(self, ade_root):
        path = ade_root / 'annotations/training/002.png'
        content = path.read_bytes()
        path.write_bytes(content[:60])
        with pytest.raises(UserError, match='002.png cannot be read'):
            retarget(seg_config(), ade_root)
        path.unlink()
        with pytest.raises(UserError, match='1 of 4 images .* no label map .*: 002.png'):
            retarget(seg_config(), ade_root)
        path.write_bytes(content)
        image = ade_root / 'images/training/003.jpg'
        image.rename(image.with_suffix('.png'))
        with pytest.raises(UserError, match='end in .jpg, .png'):
            retarget(seg_config(), ade_root)
        for image in (ade_root / 'images/training').iterdir():
            image.unlink()
        with pytest.raises(UserError, match='holds no image'):
            retarget(seg_config(), ade_root)


def test_missing_data_of_the_config_itself_is_refused(coco_root):
    cfg = det_config()
    with pytest.raises(UserError, match='instances_a.json does not exist.*--data-root'):
        check_data_exists(cfg)
    cfg = retarget(cfg, coco_root)
    check_data_exists(cfg)
    (coco_root / 'train2017').rename(coco_root / 'away')
    with pytest.raises(UserError, match='train2017/ does not exist'):
        check_data_exists(cfg)
    cfg.train_dataloader = None
    check_data_exists(cfg)


def test_other_scopes_and_models_without_heads_are_refused(coco_root):
    cfg = det_config()
    cfg.model = dict(backbone=dict(num_classes=3))
    with pytest.raises(UserError, match='No head of the model has num_classes'):
        retarget(cfg, coco_root)
    cfg.default_scope = 'mmpretrain'
    with pytest.raises(UserError, match="default_scope='mmpretrain'"):
        retarget(cfg, coco_root)


def test_palette_has_different_colours():
    palette = make_palette(150)
    assert len(set(palette)) == 150
    assert all(0 <= c <= 255 for colour in palette for c in colour)
