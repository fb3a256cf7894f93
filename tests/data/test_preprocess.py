"""Preprocessing equals transformers' Pillow processor."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from clipfuse.data import Preprocess
from clipfuse.data.preprocess import picture, planes

SIZES = [(375, 500), (500, 375), (32, 32), (28, 91), (224, 300), (301, 224), (61, 333), (225, 225)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_equal_transformers(size: tuple[int, int]):
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    ours = Preprocess()
    theirs = CLIPImageProcessorPil()(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours.normalise(ours.pixels(image)[None]), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_every_mode_becomes_rgb(mode: str):
    assert Preprocess(32, 32).pixels(Image.new("RGB", (40, 50), (9, 200, 30)).convert(mode)).shape == (3, 32, 32)


def test_small_images_wait_as_they_are():
    """They are kept unresized only where that is smaller, and nothing is lost by it."""
    ours, random = Preprocess(), np.random.default_rng(1)
    for width, height in [(28, 28), (223, 224), (224, 224), (60, 400), (60, 4000), (500, 30), (300, 300)]:
        image = Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))
        assert ours.small(image) == (min(width, height) < 224 and width * height <= 224**2)
        assert torch.equal(ours.pixels(picture(planes(image))), ours.pixels(image))
