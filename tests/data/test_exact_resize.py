"""Resizing on a device gives the very bits of Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from clipfuse.data import exact_resize
from clipfuse.data.exact_resize import bicubic, coefficients, resize_crop
from clipfuse.data.preprocess import Preprocess, picture
from clipfuse.errors import ModelError

EXTREME = [
    *((1, 1), (1, 7), (9, 1), (2, 30), (224, 224), (224, 301), (225, 224), (223, 224), (700, 41), (448, 448)),
    *((690, 345), (691, 345), (692, 345), (320, 700), (660, 300), (300, 660)),  # around twice as tall as wide, and more
]
CROPS = [(224, 224), (256, 224), (64, 63), (33, 10), (7, 1)]


def sizes(count: int, ratio: float = 8.0) -> list[tuple[int, int]]:
    """Seeded (height, width) from 1 to 700, log-uniform, of a limited aspect ratio."""
    random = np.random.default_rng(5)
    found = []
    while len(found) < count:
        height, width = (int(side) for side in np.exp(random.uniform(0, np.log(701), 2)))
        if max(height, width) <= ratio * min(height, width):
            found.append((height, width))
    return found


def drawn(height: int, width: int) -> Tensor:
    """(3, 3, height, width): noise, black and white alone (so that both ends clip), and something smooth."""
    random = np.random.default_rng(height * 701 + width)
    noise = random.integers(0, 256, (3, height, width))
    y, x = np.mgrid[:height, :width]
    phase = random.uniform(0, 6, (3, 1, 1))
    smooth = 127.5 + 127.5 * np.sin(x / random.uniform(3, 60) + phase) * np.cos(y / random.uniform(3, 60) - phase)
    return torch.from_numpy(np.stack([noise, 255 * (noise > 127), smooth]).astype(np.uint8))


def assert_equals_pillow(images: Tensor, size: int, crop: int, device: str = "cpu"):
    wanted = torch.stack([Preprocess(size, crop).pixels(picture(image)) for image in images])
    found = resize_crop(images.to(device), size, crop)
    assert found.dtype == torch.uint8
    assert found.device.type == device
    assert torch.equal(found.cpu(), wanted), f"{tuple(images.shape)} to {size}, {crop}"


@pytest.mark.parametrize("shape", EXTREME, ids=str)
def test_extreme_shapes_equal_pillow(shape: tuple[int, int]):
    for size, crop in CROPS[:3]:
        assert_equals_pillow(drawn(*shape), size, crop)


def test_random_shapes_equal_pillow():
    for number, shape in enumerate(sizes(40)):
        for size, crop in (CROPS[number % len(CROPS)], (224, 224)):
            assert_equals_pillow(drawn(*shape), size, crop)


@pytest.mark.gpu
def test_random_shapes_equal_pillow_on_cuda():
    for number, shape in enumerate(EXTREME + sizes(40)):
        assert_equals_pillow(drawn(*shape), *CROPS[number % len(CROPS)], device="cuda")


def test_a_batch_in_chunks_equals_pillow(monkeypatch: pytest.MonkeyPatch):
    images = torch.cat([drawn(40, 50), drawn(40, 50).flip(3), drawn(40, 50).flip(2)])
    monkeypatch.setattr(exact_resize, "CACHE_BYTES", 5 * 8 * (40 * 50 + 50 * 32 + 32 * 32))
    assert exact_resize.most_planes(40, 50, 32, images.device) == 5
    assert_equals_pillow(images, 36, 32)
    assert_equals_pillow(images[:1], 36, 32)
    assert resize_crop(images[:0], 36, 32).shape == (0, 3, 32, 32)


def test_strided_images_are_left_as_they_are():
    images = drawn(30, 44).transpose(2, 3)
    before = images.clone()
    for size in (30, 36):
        assert_equals_pillow(images, size, 28)
        assert torch.equal(images, before)
    same = resize_crop(images, 30, 28)
    same.zero_()
    assert torch.equal(images, before)


@pytest.mark.parametrize(("inside", "outside"), [(32, 224), (500, 298), (7, 3), (1, 5), (224, 224)])
def test_coefficients_are_the_kernel_sampled_and_normalised(inside: int, outside: int):
    low, found = coefficients(inside, outside, 0, outside)
    scale = inside / outside
    reach = (np.arange(inside) + 0.5 - (np.arange(outside)[:, None] + 0.5) * scale) / max(scale, 1)
    wanted = bicubic(reach)
    assert low == 0
    np.testing.assert_allclose(found, wanted / wanted.sum(1, keepdims=True), rtol=0, atol=2**-23 + 1e-12)
    assert (found * 2**22 == np.round(found * 2**22)).all()


def test_a_part_of_the_coefficients_is_part_of_the_whole():
    whole = coefficients(500, 298, 0, 298)[1]
    low, part = coefficients(500, 298, 37, 224)
    assert low > 0
    assert (part == whole[37:261, low : low + part.shape[1]]).all()
    assert np.count_nonzero(part) == np.count_nonzero(whole[37:261])


def test_one_image_is_a_resize_of_pillow():
    image = picture(drawn(31, 31)[0])
    wanted = np.asarray(image.resize((50, 50), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert (resize_crop(drawn(31, 31)[:1], 50, 50)[0].numpy() == wanted).all()


def test_a_crop_larger_than_the_size_is_refused():
    with pytest.raises(ModelError, match="a crop of 33 from a shortest side of 32: takes a crop from 1"):
        resize_crop(drawn(40, 40), 32, 33)
