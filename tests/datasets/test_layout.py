from pathlib import Path

import mmcv
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from mmengine.fileio import LocalBackend
from PIL import ExifTags, Image, features

from mmmobilemamba.datasets import layout
from mmmobilemamba.datasets.layout import check_images, list_files
from mmmobilemamba.errors import UserError

GREY = np.repeat(np.arange(0, 240, 5, dtype=np.uint8).reshape(6, 8)[..., None], 3, axis=2)


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'I;16'])
def test_modes_that_pass_are_read_as_8_bit_colour(tmp_path, mode):
    path = tmp_path / ('x.tiff' if mode == 'CMYK' else 'x.png')
    if mode == 'I;16':
        picture = Image.fromarray(GREY[..., 0].astype(np.uint16) * 256)
    else:
        picture = Image.fromarray(GREY).convert(mode)
    picture.save(path)
    assert [header.size for header in check_images([path])] == [(8, 6)]
    image = LoadImageFromFile()(dict(img_path=str(path)))['img']
    assert image.shape == (6, 8, 3) and image.dtype == np.uint8
    # Pillow chooses the colours of a palette, and which pixels are white.
    expected = np.asarray(picture.convert('RGB')) if mode in ('1', 'P') else GREY
    np.testing.assert_allclose(image[..., ::-1].astype(int), expected, atol=1)


@pytest.mark.parametrize('suffix', ['.jpg', '.png', '.bmp', '.webp', '.tiff'])
@pytest.mark.parametrize('rest', [b'', b'\0' * 40])
def test_whole_images_pass_whatever_follows_them(tmp_path, suffix, rest):
    path = tmp_path / f'x{suffix}'
    Image.fromarray(GREY).save(path)
    path.write_bytes(path.read_bytes() + rest)
    assert [header.size for header in check_images([path])] == [(8, 6)]


def with_orientation(path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(GREY).save(path, exif=exif)
    return path


@pytest.mark.parametrize('suffix', ['.jpg', '.mpo', '.png', '.webp', '.tiff', '.avif', '.bmp'])
def test_sizes_and_orientations_are_those_that_reading_gives(tmp_path, monkeypatch, suffix):
    said = []
    monkeypatch.setattr(layout, 'print_log', lambda text, logger: said.append(text))
    if not features.check('avif') and suffix == '.avif':
        pytest.skip('this Pillow has no AVIF')
    paths = [with_orientation(tmp_path / f'{i}{suffix}', i) for i in range(1, 9)]
    images = [mmcv.imfrombytes(path.read_bytes()) for path in paths]
    headers = check_images(paths)
    assert [header.size for header in headers] == [image.shape[1::-1] for image in images]
    turned = [x.shape != images[0].shape or not np.allclose(x, images[0], atol=20) for x in images]
    assert [header.orientation != 1 for header in headers] == turned
    assert len(said) == any(turned)
    assert not said or said[0].startswith('7 of 8 images are turned or mirrored')
    if suffix == '.jpg':
        assert sum(turned) == 7


def test_orientations_that_opencv_does_not_see_turn_nothing(tmp_path):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    rests = (b'', b'MM', b'MM\0*\0\0', b'no EXIF data', b'MM\0*\0\0\0\x08\0\x01')
    spoiled = [b'Exif\0\0' + rest for rest in rests]
    paths = []
    for i, options in enumerate([dict(xmp=xmp), *(dict(exif=exif) for exif in spoiled)]):
        paths.append(tmp_path / f'{i}.jpg')
        Image.fromarray(GREY).save(paths[-1], **options)
    paths.append(with_orientation(tmp_path / 'high.jpg', 9))
    assert {mmcv.imfrombytes(path.read_bytes()).shape for path in paths} == {(6, 8, 3)}
    assert {(header.size, header.orientation) for header in check_images(paths)} == {((8, 6), 1)}


@pytest.mark.parametrize('suffix', ['.tga', '.pcx', '.ico', '.dds', '.sgi'])
def test_formats_that_opencv_does_not_read_are_refused(tmp_path, suffix):
    paths = [tmp_path / 'a.jpg', tmp_path / f'b{suffix}', tmp_path / f'c{suffix}']
    for path in paths:
        Image.fromarray(GREY).save(path)
    with pytest.raises(UserError, match=rf'2 of 3 images .*b\{suffix}.* OpenCV cannot read this kind'):
        check_images(paths)


class TestListFiles:
    def test_links_are_followed_as_mmengine_follows_them(self, tmp_path):
        for name in (
            'root/a.jpg',
            'root/x/b.JPG',
            'root/.hid/c.jpg',
            'other/y/d.jpg',
            'root/.e.jpg',
            'root/f.txt',
        ):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        (tmp_path / 'root/link').symlink_to(tmp_path / 'other', target_is_directory=True)
        (tmp_path / 'root/x/again').symlink_to('../../other', target_is_directory=True)
        (tmp_path / 'g.jpg').touch()
        (tmp_path / 'root/g.jpg').symlink_to(tmp_path / 'g.jpg')
        root = tmp_path / 'root'
        read = LocalBackend().list_dir_or_file(
            str(root), list_dir=False, suffix=('.jpg', '.JPG'), recursive=True
        )
        assert list_files(root, ('.jpg',)) == sorted(read)
        assert len(list_files(root, ('.jpg',))) == 6

    def test_other_files_are_passed_over_with_a_word(self, tmp_path, monkeypatch):
        said = []
        monkeypatch.setattr(layout, 'print_log', lambda text, logger: said.append(text))
        for name in ('a.jpg', 'b.gif', 'x/c.txt', '.d'):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).touch()
        assert list_files(tmp_path, ('.jpg', '.png')) == ['a.jpg']
        assert said == [f'{tmp_path}: 2 files that do not end in .jpg, .png are passed over: b.gif, x/c.txt.']
        assert list_files(tmp_path, ('.png',)) == []  # of which the caller speaks
        assert len(said) == 1

    @pytest.mark.parametrize('target', ['.', '..', '../..'])
    def test_endless_links_are_refused(self, tmp_path, target):
        (tmp_path / 'root/x').mkdir(parents=True)
        (tmp_path / 'root/x/link').symlink_to(target, target_is_directory=True)
        with pytest.raises(UserError, match='x/link is a link to a folder that it lies in'):
            list_files(tmp_path / 'root', ('.jpg',))
