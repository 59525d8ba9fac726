import builtins
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO

from mmmobilemamba.datasets import demo
from mmmobilemamba.datasets.demo import make_demo_data

SETTINGS = dict(num_train=20, num_val=8, image_size=128)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp('data') / 'demo'
    assert make_demo_data(root, **SETTINGS)
    return root


@pytest.fixture(scope='module')
def splits(root):
    return {s: COCO(root / f'annotations/instances_{s}2017.json') for s in ('train', 'val')}


def contents(root: Path) -> dict[str, bytes]:
    return {str(f.relative_to(root)): f.read_bytes() for f in root.rglob('*') if f.is_file()}


def test_both_layouts_show_the_same_pictures(root, splits):
    for split, ade, number in (('train', 'training', 20), ('val', 'validation', 8)):
        listed = sorted(image['file_name'] for image in splits[split].imgs.values())
        assert len(listed) == number
        assert sorted(f.name for f in (root / f'{split}2017').iterdir()) == listed
        pictures = sorted((root / 'images' / ade).iterdir())
        maps = sorted((root / 'annotations' / ade).iterdir())
        assert [f.name for f in pictures] == listed
        assert [f.stem for f in maps] == [f.stem for f in pictures]
        for picture in pictures:
            assert picture.read_bytes() == (root / f'{split}2017' / picture.name).read_bytes()
            assert cv2.imread(str(picture)).shape == (128, 128, 3)
    assert (root / 'classes.txt').read_text().split() == ['background', *demo.DIGITS]
    assert not root.with_name('demo.partial').exists()


def test_boxes_are_the_bounds_of_the_masks_and_label_maps_are_the_masks(root, splits):
    for split, ade in demo.ADE_SPLITS.items():
        coco = splits[split]
        assert [c['name'] for c in coco.cats.values()] == list(demo.DIGITS)
        for image in coco.imgs.values():
            expected = np.ones((128, 128), np.uint8)
            annotations = coco.imgToAnns[image['id']]
            assert annotations
            for annotation in annotations:
                mask = coco.annToMask(annotation) == 1
                rows, columns = np.nonzero(mask)
                left, top, width, height = annotation['bbox']
                assert (left, left + width) == (columns.min(), columns.max() + 1)
                assert (top, top + height) == (rows.min(), rows.max() + 1)
                assert annotation['area'] == mask.sum()
                assert (expected[mask] == 1).all(), 'digits overlap'
                expected[mask] = annotation['category_id'] + 1
            path = root / 'annotations' / ade / image['file_name'].replace('.jpg', '.png')
            np.testing.assert_array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), expected)


def test_digits_stand_out_and_vary_in_size(root, splits):
    sizes, contrasts = [], []
    coco = splits['train']
    for image in coco.imgs.values():
        path = root / 'train2017' / image['file_name']
        picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE).astype(float)
        for annotation in coco.imgToAnns[image['id']]:
            left, top, width, height = annotation['bbox']
            box = (slice(top, top + height), slice(left, left + width))
            mask = coco.annToMask(annotation)[box] == 1
            sizes.append(max(width, height))
            contrasts.append(abs(picture[box][mask].mean() - picture[box][~mask].mean()))
    assert min(sizes) >= 12 and max(sizes) <= 80
    assert max(sizes) > 3 * min(sizes)
    assert np.median(contrasts) > 60


def test_train_and_val_share_neither_photographs_nor_digit_scans(splits):
    photographs = [{i['photograph'] for i in c.imgs.values()} for c in splits.values()]
    assert photographs[0] and photographs[1] and not photographs[0] & photographs[1]
    scans = [{a['scan'] for a in c.anns.values()} for c in splits.values()]
    assert scans[0] and scans[1] and not scans[0] & scans[1]


def test_labels_are_those_of_the_scans(splits):
    from sklearn.datasets import load_digits

    target = load_digits().target
    for coco in splits.values():
        for annotation in coco.anns.values():
            assert annotation['category_id'] - 1 == target[annotation['scan']]


def test_same_seed_same_files(root, tmp_path):
    make_demo_data(tmp_path / 'same', **SETTINGS)
    make_demo_data(tmp_path / 'other', seed=1, **SETTINGS)
    assert contents(tmp_path / 'same') == contents(root)
    assert contents(tmp_path / 'other').keys() == contents(root).keys()
    assert contents(tmp_path / 'other') != contents(root)


def test_second_run_leaves_the_data_set_alone(root):
    before = {f: f.stat().st_mtime_ns for f in root.rglob('*')}
    assert not make_demo_data(root, **SETTINGS)
    assert {f: f.stat().st_mtime_ns for f in root.rglob('*')} == before


def test_interruption_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(demo, '_link', interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_demo_data(tmp_path / 'demo', **SETTINGS)
    assert not list(tmp_path.iterdir())

    (tmp_path / 'demo.partial' / 'annotations').mkdir(parents=True)  # left by a killed process
    assert make_demo_data(tmp_path / 'demo', **SETTINGS)
    assert [f.name for f in tmp_path.iterdir()] == ['demo']


def test_pictures_are_copied_where_links_are_impossible(root, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError('no symbolic links here')

    monkeypatch.setattr(Path, 'symlink_to', refuse)
    make_demo_data(tmp_path / 'demo', **SETTINGS)
    assert not any(f.is_symlink() for f in tmp_path.rglob('*'))
    assert {f: data for f, data in contents(tmp_path / 'demo').items() if 'images' in f}
    shutil.rmtree(tmp_path / 'demo' / 'images')
    expected = {f: data for f, data in contents(root).items() if not f.startswith('images')}
    assert contents(tmp_path / 'demo') == expected


def test_a_folder_that_holds_something_else_is_refused(root, tmp_path):
    with pytest.raises(FileExistsError, match=r'other settings \(seed 0, num_train 20, .*remove'):
        make_demo_data(root, seed=1, **SETTINGS)
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'annotations' / 'instances_val2017.json').write_text(json.dumps([]))
    with pytest.raises(FileExistsError, match='is not a demo data set; choose another folder'):
        make_demo_data(tmp_path)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(seed=-1), 'seed is -1; it must be 0 or more'),
        (dict(num_train=0), 'num_train is 0; it must be 1 to 100000 pictures'),
        (dict(num_val=-3), 'num_val is -3; it must be 1 to 100000 pictures'),
        (dict(image_size=32), 'image_size is 32; it must be 64 to 1024 pixels'),
    ],
)
def test_bad_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        make_demo_data(tmp_path / 'demo', **settings)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('package', ['sklearn', 'skimage', 'pycocotools'])
def test_a_missing_package_is_named_with_the_command(tmp_path, monkeypatch, package):
    real_import = builtins.__import__

    def without_package(name, *args, **kwargs):
        if name.split('.')[0] == package:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', without_package)
    with pytest.raises(ImportError, match=f'{package}.* is missing; .*pip install scikit-learn'):
        make_demo_data(tmp_path / 'demo')
    assert not list(tmp_path.iterdir())
