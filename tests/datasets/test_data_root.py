import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pycocotools.mask
import pytest
from mmdet.datasets import CocoDataset, VOCDataset
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from PIL import ExifTags, Image

from mmmobilemamba import engine
from mmmobilemamba.datasets import check_data_exists, coco_layout, retarget
from mmmobilemamba.datasets.data_root import make_palette, set_num_classes
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
            default_hooks={},
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
            default_hooks={},
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


def rename_image(content: dict, new: str) -> None:
    """Give another id to the first image."""
    old = content['images'][0]['id']
    content['images'][0]['id'] = new
    for annotation in content['annotations']:
        if annotation['image_id'] == old:
            annotation['image_id'] = new


def turn(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    with Image.open(path) as image:
        image.load()
    image.save(path, exif=exif)


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

    def test_training_without_validation_needs_no_validation_split(self, coco_root):
        complete = retarget(det_config(), coco_root)
        (coco_root / 'annotations/instances_val2017.json').unlink()
        (coco_root / 'val2017').rename(coco_root / 'away')
        cfg = det_config()
        engine.skip_validation(cfg)
        cfg = retarget(cfg, coco_root)
        check_data_exists(cfg)
        # What is dumped can be tested once the split is there.
        for part in ('model', 'train_dataloader', 'test_dataloader', 'test_evaluator'):
            assert cfg[part] == complete[part], part
        with pytest.raises(UserError, match='lacks annotations/instances_val2017.json'):
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

    @pytest.mark.parametrize(
        ('mask', 'words'),
        [
            ([[1, 2, 3, 'a', 5, 6]], 'a polygon that is not a list of finite numbers'),
            ([[1, 2, 3, float('nan'), 5, 6]], 'a polygon that is not a list of finite numbers'),
            ([[1e12, 1, 10, 1, 10, 10]], 'a polygon far outside its image'),
            ([1, 2, 3, 4, 5, 6], 'a polygon that is not a list of finite numbers'),
            ('m', 'a str'),
            (dict(size=[1, 2], counts=[2]), r'size .1, 2., but its image is .\d+, \d+.'),
            (dict(counts=[2]), 'counts that do not fill the image'),
            (dict(counts='zzz'), 'counts that do not fill the image'),
            (dict(counts=None), 'counts that do not fill the image'),
        ],
    )
    def test_masks_that_are_none(self, coco_root, mask, words):
        def change(content):
            image = next(i for i in content['images'] if i['id'] == content['annotations'][2]['image_id'])
            size = [image['height'], image['width']]
            content['annotations'][2]['segmentation'] = (
                dict(size=size) | mask if isinstance(mask, dict) else mask
            )

        edit_json(coco_root, change)
        cfg = det_config()
        retarget(cfg, coco_root)
        cfg.train_dataloader.dataset.pipeline[1].with_mask = True
        with pytest.raises(UserError, match=f'1 of 8 .* no mask .id 3: {words}.* Allowed are'):
            retarget(cfg, coco_root)

    def test_compressed_masks_must_be_whole(self, coco_root):
        cfg = det_config()
        cfg.train_dataloader.dataset.pipeline[1].with_mask = True

        def change(content, end=''):
            image = next(i for i in content['images'] if i['id'] == content['annotations'][2]['image_id'])
            mask = np.zeros((image['height'], image['width']), np.uint8, order='F')
            mask[5:40, 7:30] = 1
            encoded = pycocotools.mask.encode(mask)
            content['annotations'][2]['segmentation'] = dict(
                size=list(mask.shape), counts=encoded['counts'].decode() + end
            )

        edit_json(coco_root, change)
        retarget(cfg, coco_root)
        # One more character that announces another.
        edit_json(coco_root, partial(change, end='P'))
        with pytest.raises(UserError, match='id 3: counts that do not fill the image'):
            retarget(cfg, coco_root)

    @pytest.mark.parametrize('polygon', [[], [1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7]])
    def test_polygons_without_area(self, coco_root, monkeypatch, polygon):
        said = []
        monkeypatch.setattr(coco_layout, 'print_log', lambda text, **_: said.append(text))
        cfg = det_config()
        for loader in (cfg.train_dataloader, cfg.val_dataloader):
            next(t for t in loader.dataset.pipeline if t.type == 'LoadAnnotations').with_mask = True
        edit_json(coco_root, lambda c: c['annotations'][2].update(segmentation=[polygon]))
        retarget(cfg, coco_root)
        assert any('1 of 8 objects are left out: no polygon' in line for line in said)
        edit_json(coco_root, lambda c: c['annotations'][2].update(segmentation=[polygon]), 'val')
        if len(polygon) > 4:
            retarget(cfg, coco_root)
            return
        with pytest.raises(UserError, match="one or two points, on which COCO's evaluation fails .ids 3"):
            retarget(cfg, coco_root)

    @pytest.mark.parametrize(
        'change, words',
        [
            (
                lambda c: c['annotations'][1].update(id=0),
                'has the id 0.*missed.*Number the annotations from 1',
            ),
            (lambda c: c['annotations'][1].update(id='a'), "1 of 4 .* have a id that is no int: 'a'"),
            (lambda c: rename_image(c, 'a'), "ids in 'images' .* partly int and partly str.*Use one type"),
            (lambda c: c['annotations'][1].pop('iscrowd'), '1 of 4 .* no "iscrowd" that is 0 or 1 .ids 2'),
            (lambda c: c['annotations'][1].update(iscrowd=None), 'no "iscrowd" that is 0 or 1'),
        ],
        ids=['id 0', 'text as id', 'ids of two types', 'no iscrowd', 'iscrowd null'],
    )
    def test_what_the_evaluation_needs_is_asked_of_what_is_evaluated(self, coco_root, change, words):
        edit_json(coco_root, change, 'train')
        cfg = retarget(det_config(), coco_root)
        init_default_scope('mmdet')
        instances = [x for i in DATASETS.build(cfg.train_dataloader.dataset) for x in i['instances']]
        assert len(instances) == 8 and not any(x['ignore_flag'] for x in instances)
        edit_json(coco_root, change, 'val')
        with pytest.raises(UserError, match=words):
            retarget(det_config(), coco_root)

    @pytest.mark.parametrize(
        'crowd, words',
        [('0', '8 of 8 .* no "iscrowd" that is 0 or 1'), (1, 'All 8 annotations .* "iscrowd" 1')],
    )
    def test_crowds_that_would_all_be_ignored(self, coco_root, crowd, words):
        edit_json(coco_root, lambda c: [a.update(iscrowd=crowd) for a in c['annotations']])
        with pytest.raises(UserError, match=words):
            retarget(det_config(), coco_root)

    @pytest.mark.parametrize('kind', ['VOCDataset', 'mmdet.VOCDataset', VOCDataset, 'Unknown'])
    def test_data_sets_that_are_not_of_coco_are_refused(self, coco_root, kind):
        cfg = det_config()
        leaf = dict(cfg.train_dataloader.dataset, type=kind)
        cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=leaf)
        with pytest.raises(
            UserError, match='train_dataloader .* type=.*(VOC|Unknown).*works with CocoDataset'
        ):
            retarget(cfg, coco_root)
        for kind in (CocoDataset, 'mmdet.CocoDataset', 'LVISV1Dataset'):
            cfg.train_dataloader.dataset.dataset.type = kind
            retarget(cfg, coco_root)

    def test_panoptic_data_sets_are_refused(self, coco_root):
        cfg = det_config()
        cfg.train_dataloader.dataset.type = 'CocoPanopticDataset'
        with pytest.raises(UserError, match="type='CocoPanopticDataset'.*panoptic"):
            retarget(cfg, coco_root)

    @pytest.mark.parametrize('orientation', [3, 6])
    def test_turned_images_need_boxes_for_the_turned_image(self, coco_root, orientation):
        turn(coco_root / 'train2017/000000.jpg', orientation)
        if orientation == 6:
            with pytest.raises(
                UserError, match=r'is 72x64 .*says 64x72.*EXIF orientation \(6\).*make the boxes'
            ):
                retarget(det_config(), coco_root)
            edit_json(coco_root, lambda c: c['images'][0].update(width=72, height=64))
        cfg = retarget(det_config(), coco_root)
        init_default_scope('mmdet')
        first = DATASETS.build(cfg.train_dataloader.dataset)[0]
        assert first['img'].shape == (first['height'], first['width'], 3)

    def test_sides_that_are_swapped_without_a_turn_are_refused(self, coco_root):
        edit_json(coco_root, lambda c: c['images'][0].update(width=72, height=64))
        with pytest.raises(UserError, match='is 64x72 .*says 72x64') as caught:
            retarget(det_config(), coco_root)
        assert 'EXIF' not in str(caught.value)

    def test_what_the_data_set_will_leave_out_is_said(self, coco_root, monkeypatch):
        said = []
        monkeypatch.setattr(coco_layout, 'print_log', lambda text, **_: said.append(text))
        edit_json(coco_root, lambda c: c['annotations'][0].update(bbox=[500, 2, 9, 9]))
        edit_json(coco_root, lambda c: c['annotations'][1].update(bbox=[40, 2, 60, 9]))
        edit_json(coco_root, lambda c: c['images'].append(dict(c['images'][0], id=9)))
        retarget(det_config(), coco_root)
        assert '1 of 8 boxes are left out' in said[0]
        assert '1 of 8 boxes reach beyond their image' in said[1]
        assert '4 of 5 images are used' in said[2]


class TestSegmentation:
    @pytest.mark.parametrize('suffix', ['.jpg', '.png'])
    def test_data_sets_give_the_new_images_and_labels(self, ade_root, suffix):
        for path in ade_root.glob('images/*/*.jpg'):
            path.rename(path.with_suffix(suffix))
        cfg = seg_config()
        cfg.train_dataloader.dataset.seg_map_suffix = '_mask.png'
        cfg = retarget(cfg, ade_root)
        init_default_scope('mmseg')
        for loader, count in (('train_dataloader', 4), ('val_dataloader', 2)):
            dataset = DATASETS.build(cfg[loader].dataset)
            assert len(dataset) == count
            assert dataset.metainfo['classes'] == ('background', 'square', 'stripe')
            labels = dataset[0]['data_samples'].gt_sem_seg.data
            assert set(np.unique(labels)) == {0, 1, 2, 255}
        assert cfg.model.decode_head.num_classes == 3
        assert cfg.model.auxiliary_head[0].num_classes == 3

    def test_turned_images_need_maps_for_the_turned_image(self, ade_root):
        turn(ade_root / 'images/training/000.jpg', 6)
        with pytest.raises(UserError, match=r'is 80x72 .* 72x80.*EXIF orientation \(6\).*make the map'):
            retarget(seg_config(), ade_root)
        path = ade_root / 'annotations/training/000.png'
        Image.open(path).transpose(Image.Transpose.ROTATE_270).save(path)
        cfg = retarget(seg_config(), ade_root)
        init_default_scope('mmseg')
        first = DATASETS.build(cfg.train_dataloader.dataset)[0]
        assert first['inputs'].shape[1:] == first['data_samples'].gt_sem_seg.shape == (80, 72)

    @pytest.mark.parametrize('value', [3, 9])
    def test_images_behind_links_are_checked_as_they_are_trained_on(self, ade_root, value):
        for kind, suffix in (('images', 'jpg'), ('annotations', 'png')):
            away = ade_root / f'away/{kind}'
            away.mkdir(parents=True)
            (ade_root / f'{kind}/training/000.{suffix}').rename(away / f'000.{suffix}')
            (ade_root / f'{kind}/training/link').symlink_to(away, target_is_directory=True)
        Image.fromarray(np.full((72, 80), value, np.uint8)).save(ade_root / 'away/annotations/000.png')
        if value == 9:
            with pytest.raises(UserError, match='link/000.png holds 9'):
                retarget(seg_config(), ade_root)
        else:
            cfg = retarget(seg_config(), ade_root)
            init_default_scope('mmseg')
            assert len(DATASETS.build(cfg.train_dataloader.dataset)) == 4

    def test_testing_needs_no_training_split(self, ade_root):
        (ade_root / 'images/training').rename(ade_root / 'images/away')
        cfg = seg_config()
        cfg.train_dataloader = None
        assert retarget(cfg, ade_root).model.decode_head.num_classes == 3
        with pytest.raises(UserError, match='lacks images/training/'):
            retarget(seg_config(), ade_root)

    @pytest.mark.parametrize('missing', [False, True])
    def test_training_without_validation_needs_no_validation_split(self, ade_root, missing):
        for path in ade_root.glob('images/validation/*.jpg' if not missing else '*/validation/*'):
            # Of another kind than those for training, and the maps are not whole.
            path.unlink() if missing else path.rename(path.with_suffix('.png'))
        complete = None if missing else retarget(seg_config(), ade_root)
        if not missing:
            next(ade_root.glob('annotations/validation/*')).write_text('')
        cfg = seg_config()
        engine.skip_validation(cfg)
        cfg = retarget(cfg, ade_root)
        assert cfg.model.decode_head.num_classes == 3
        assert cfg.test_dataloader.dataset.img_suffix == ('.jpg' if missing else '.png')
        assert missing or cfg.test_dataloader == complete.test_dataloader
        with pytest.raises(UserError, match='holds no image|cannot be read'):
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
    cfg.train_dataloader.dataset.backend_args = dict(backend='petrel')  # may lie anywhere
    check_data_exists(cfg)
    cfg.train_dataloader = None
    check_data_exists(cfg)
    (coco_root / 'val2017').rename(coco_root / 'away too')
    with pytest.raises(UserError, match='val2017/ does not exist; the test_dataloader'):
        check_data_exists(cfg)


def test_other_scopes_and_models_without_heads_are_refused(coco_root):
    cfg = det_config()
    cfg.model = dict(backbone=dict(num_classes=3))
    with pytest.raises(UserError, match='No head of the model has num_classes'):
        retarget(cfg, coco_root)
    cfg.default_scope = 'mmpretrain'
    with pytest.raises(UserError, match="default_scope='mmpretrain'"):
        retarget(cfg, coco_root)


@pytest.mark.parametrize('key', ['ann_file', 'data_root'])
def test_several_data_sets_joined_are_refused(coco_root, key):
    cfg = det_config()
    one = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[one, dict(one)])
    retarget(cfg, coco_root)
    cfg.train_dataloader.dataset.datasets[1][key] = 'unlabeled'
    with pytest.raises(UserError, match='train_dataloader .* joins 2 .*unlabeled.*leave --data-root out'):
        retarget(cfg, coco_root)


class TestSetNumClasses:
    def test_weights_of_classes_go_along(self):
        head = dict(
            num_classes=3, loss=[dict(class_weight=[1.0, 1.0, 1.0, 0.1]), dict(class_weight=(2.0,) * 3)]
        )
        assert set_num_classes(head, 5) == set_num_classes(head, 5) == 1
        assert head == dict(
            num_classes=5, loss=[dict(class_weight=[1.0] * 5 + [0.1]), dict(class_weight=[2.0] * 5)]
        )

    def test_weights_made_for_the_data_are_kept_and_others_refused(self):
        weights = [0.5, 1.0, 2.0]
        head = dict(num_classes=150, loss=dict(type='Loss', class_weight=weights))
        set_num_classes(head, 3)
        assert head['loss']['class_weight'] == weights
        with pytest.raises(UserError, match='class_weight of a Loss .* 3 classes.*have 5'):
            set_num_classes(head, 5)

    @pytest.mark.parametrize('stuff, things', [(0, 5), (53, 80)])
    def test_heads_of_mask2former(self, stuff, things):
        head = dict(
            num_things_classes=80,
            num_stuff_classes=stuff,
            loss=dict(class_weight=[1.0] * (80 + stuff) + [0.1]),
        )
        assert set_num_classes(head, 5) == (stuff == 0)
        assert head['num_things_classes'] == things
        assert len(head['loss']['class_weight']) == things + stuff + 1


def test_palette_has_different_colours():
    palette = make_palette(150)
    assert len(set(palette)) == 150
    assert all(0 <= c <= 255 for colour in palette for c in colour)
