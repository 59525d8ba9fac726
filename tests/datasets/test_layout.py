import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile
from PIL import Image

from mmmobilemamba.datasets.layout import check_images

GREY = np.repeat(np.arange(0, 240, 5, dtype=np.uint8).reshape(6, 8)[..., None], 3, axis=2)


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'I;16'])
def test_modes_that_pass_are_read_as_8_bit_colour(tmp_path, mode):
    path = tmp_path / ('x.tiff' if mode == 'CMYK' else 'x.png')
    if mode == 'I;16':
        picture = Image.fromarray(GREY[..., 0].astype(np.uint16) * 256)
    else:
        picture = Image.fromarray(GREY).convert(mode)
    picture.save(path)
    assert check_images([path]) == [(8, 6)]
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
    assert check_images([path]) == [(8, 6)]
