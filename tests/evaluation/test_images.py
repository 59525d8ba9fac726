from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmmobilemamba.evaluation.images import ImageError, find_images, read_image


@pytest.mark.parametrize('mode', ['L', 'P', 'RGB', 'RGBA', 'I;16'])
def test_every_mode_becomes_8_bit_colour(tmp_path, mode):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    if mode == 'I;16':
        picture = Image.fromarray(grey.astype(np.uint16) * 256)
    else:
        picture = Image.fromarray(grey).convert(mode)
    picture.save(tmp_path / 'x.png')
    image = read_image(tmp_path / 'x.png')
    assert image.shape == (6, 8, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.repeat(grey[..., None], 3, axis=2))


def test_a_single_pixel_is_refused(tmp_path):
    Image.new('RGB', (1, 1)).save(tmp_path / 'x.png')
    with pytest.raises(ImageError, match='x.png: there is nothing to see on a single pixel'):
        read_image(tmp_path / 'x.png')


def test_a_decoder_that_fails(tmp_path):
    Image.new('RGB', (2, 1)).save(tmp_path / 'x.png')
    with pytest.raises(ImageError, match="x.png: the decoder 'tifffile' of the config fails on it"):
        read_image(tmp_path / 'x.png', backend='tifffile')


def test_names_are_unique_and_dead_inputs_are_told(tmp_path):
    (tmp_path / 'a/sub').mkdir(parents=True)
    (tmp_path / 'empty').mkdir()
    for name in ('a/x.jpg', 'a/x.png', 'a/sub/y.JPG', 'a/notes.txt'):
        (tmp_path / name).touch()
    (tmp_path / 'loop').mkdir()
    (tmp_path / 'loop/link').symlink_to('.', target_is_directory=True)
    inputs = [tmp_path / name for name in ('a', 'a/*.png', 'empty', '*.gif', 'no', 'loop')]
    files, problems = find_images(list(map(str, inputs)))
    assert [Path(f.name).as_posix() for f in files] == ['sub/y', 'x', 'x-2']
    assert [p.split(': ')[1][:7] for p in problems[:3]] == ['no imag', 'no file', 'no such']
    assert len(problems) == 4 and 'link is a link to a folder that it lies in' in problems[3]
