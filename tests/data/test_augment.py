"""Augmentation: identities, what each change may do, and random numbers that belong to an image and nothing else."""

import re
from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from clipfuse.config import parse
from clipfuse.data.augment import CROP, CROP_RATIO, Augment, augment, draws, rectangle, resized
from clipfuse.data.preprocess import OPENAI_MEAN, Preprocess, picture, planes
from clipfuse.errors import ConfigError

EVERYTHING = Augment(
    random_resized_crop=[0.3, 1.0], random_crop_padding=2, horizontal_flip=0.5, brightness=0.4, contrast=0.4,
    saturation=0.4, grayscale=0.3, random_erasing=0.5,
)  # fmt: skip
OFF = Augment()


def noise(count: int, side: int = 16, seed: int = 0) -> Tensor:
    return torch.randint(256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def smooth(count: int, side: int = 32) -> Tensor:
    """Pictures without hard edges."""
    coarse = noise(count, 4).float()
    fine = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear", antialias=True)
    return fine.round().to(torch.uint8)


def test_nothing_is_on_by_default():
    pixels = noise(4)
    assert augment(pixels, range(4), OFF, 0) is pixels
    assert not OFF.active
    for name in Augment.model_fields:
        assert Augment(**{name: getattr(EVERYTHING, name)}).active


@pytest.mark.parametrize("how", [EVERYTHING, Augment(horizontal_flip=0.5), Augment(random_erasing=1.0)])
def test_what_is_given_is_not_changed(how: Augment):
    pixels = noise(8)
    before = pixels.clone()
    found = augment(pixels, range(8), how, 0)
    assert torch.equal(pixels, before)
    assert (found.shape, found.dtype) == (pixels.shape, pixels.dtype)
    assert not torch.equal(found, pixels)
    assert augment(pixels[:0], [], how, 0).shape == (0, 3, 16, 16)


def test_an_image_has_its_bits_in_any_batch():
    pixels, keys = noise(12), [7, 1, 10**12, 3, 0, 5, 6, 2, 8, 9, 10, 11]
    whole = augment(pixels, keys, EVERYTHING, 5)
    for cut in ([0, 12], [0, 5, 12], [0, 1, 2, 12]):
        parts = [augment(pixels[a:b], keys[a:b], EVERYTHING, 5) for a, b in pairwise(cut)]
        assert torch.equal(torch.cat(parts), whole)
    order = [3, 0, 11, 3]
    assert torch.equal(augment(pixels[order], [keys[i] for i in order], EVERYTHING, 5), whole[order])


def test_seed_and_key_both_matter():
    pixels = noise(1).expand(6, -1, -1, -1)
    one, other = augment(pixels, range(6), EVERYTHING, 0), augment(pixels, range(6), EVERYTHING, 1)
    images = {image.numpy().tobytes() for image in [*one, *other]}
    assert len(images) == 12
    assert torch.equal(augment(pixels, range(6), EVERYTHING, 0), one)
    augment(pixels, [0, 1, 2, 3, 4, 2**64 - 1], EVERYTHING, -1)
    with pytest.raises(ValueError, match="shorter"):
        augment(pixels, range(5), EVERYTHING, 0)


def test_what_one_change_draws_does_not_depend_on_the_others():
    pixels = noise(32)
    flipped = augment(pixels, range(32), Augment(horizontal_flip=0.5), 0)
    both = augment(pixels, range(32), Augment(horizontal_flip=0.5, grayscale=1.0), 0)
    assert torch.equal(both, augment(flipped, range(32), Augment(grayscale=1.0), 0))


def test_threads_do_not_matter():
    pixels, threads = noise(2, 224), torch.get_num_threads()
    one = augment(pixels, [0, 1], EVERYTHING, 0)
    try:
        torch.set_num_threads(3)
        assert torch.equal(augment(pixels, [0, 1], EVERYTHING, 0), one)
    finally:
        torch.set_num_threads(threads)


def test_flips():
    pixels = noise(400, 4)
    assert torch.equal(augment(pixels, range(400), Augment(horizontal_flip=1.0), 0), pixels.flip(-1))
    found = augment(pixels, range(400), Augment(horizontal_flip=0.25), 0)
    mirrored = (found == pixels.flip(-1)).flatten(1).all(1)
    assert ((found == pixels).flatten(1).all(1) ^ mirrored).all()
    assert 70 < mirrored.sum() < 130


def test_a_crop_of_everything_changes_nothing():
    pixels = noise(20)
    assert torch.equal(augment(pixels, range(20), Augment(random_resized_crop=[1.0, 1.0]), 0), pixels)


def test_resizing_a_part_is_nearly_that_of_pillow():
    for image in smooth(4):
        found = resized(image, 3, 5, 20, 24).int()
        wanted = planes(picture(image).crop((5, 3, 29, 23)).resize((32, 32), Image.Resampling.BICUBIC)).int()
        assert (found - wanted).abs().max() <= 1


def test_boxes_of_crops_have_the_share_and_ratio_asked_for():
    boxes = [rectangle(draws(0, key, CROP), 224, (0.3, 0.6), CROP_RATIO) for key in range(300)]
    assert all(boxes)
    whole = [box for box in boxes if box]
    shares = torch.tensor([height * width / 224**2 for _, _, height, width in whole])
    ratios = torch.tensor([width / height for _, _, height, width in whole])
    assert 0.295 < shares.min() < 0.32
    assert 0.58 < shares.max() < 0.605
    assert 0.74 < ratios.min() < 0.78
    assert 1.28 < ratios.max() < 1.35
    assert abs(ratios.log().mean()) < 0.05
    assert all(top >= 0 <= left and top + height <= 224 >= left + width for top, left, height, width in whole)
    assert len({(top, left) for top, left, _, _ in whole}) > 250
    assert rectangle(draws(0, 0, CROP), 8, (1.0, 1.0), (2.0, 3.0)) is None


@pytest.mark.parametrize("padding", [1, 4, 15, 40])
def test_padded_crops_are_those_of_numpys_reflection(padding: int):
    pixels = noise(300, 6)
    found = augment(pixels, range(300), Augment(random_crop_padding=padding), 0)
    places = set()
    for image, cut in zip(pixels[:60], found[:60], strict=True):
        padded = torch.from_numpy(np.pad(image.numpy(), [(0, 0), (padding, padding), (padding, padding)], "reflect"))
        windows = padded.unfold(1, 6, 1).unfold(2, 6, 1)  # (3, place, place, 6, 6)
        same = (windows == cut[:, None, None]).flatten(3).all(-1).all(0).nonzero()
        assert len(same), "it is one of the windows"
        places.add(tuple(same[0].tolist()))
    if padding == 1:
        assert places == {(i, j) for i in range(3) for j in range(3)}


def test_a_single_pixel_can_be_padded():
    pixels = noise(3, 1)
    assert torch.equal(augment(pixels, range(3), Augment(random_crop_padding=3), 0), pixels)


def test_brightness_is_a_factor_from_its_range():
    pixels = torch.full((300, 3, 4, 4), 100, dtype=torch.uint8)
    found = augment(pixels, range(300), Augment(brightness=0.3), 0)
    assert (found == found[:, :1, :1, :1]).all()
    values = found[:, 0, 0, 0].int()
    assert 70 <= values.min() < 73
    assert 127 < values.max() <= 130
    assert abs(values.float().mean() - 100) < 4


@pytest.mark.parametrize(
    ("name", "enhance"),
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)],
)
def test_colours_change_nearly_as_with_pillow(name: str, enhance: type):
    """Some factor from the range gives the same picture, but for Pillow's cutting off decimals."""
    pixels = smooth(6)
    found = augment(pixels, range(6), parse(Augment, {name: 0.5}, "augment"), 0)
    for image, changed in zip(pixels, found, strict=True):
        assert not torch.equal(image, changed)
        factors = [0.5 + i / 250 for i in range(251)]
        distances = [
            (planes(enhance(picture(image)).enhance(factor)).int() - changed.int()).abs().max() for factor in factors
        ]
        assert min(distances) <= 2


def test_colour_changes_come_in_every_order():
    """One after the other they give the same as together, but for rounding, in the order that was drawn."""
    pixels, keys = noise(1).expand(60, -1, -1, -1), range(60)
    names = ("brightness", "contrast", "saturation")
    single = {name: parse(Augment, {name: 0.8}, "augment") for name in names}
    found = augment(pixels, keys, parse(Augment, dict.fromkeys(names, 0.8), "augment"), 0)
    distances = []
    for order in permutations(names):
        wanted = pixels
        for name in order:
            wanted = augment(wanted, keys, single[name], 0)
        distances.append((wanted.int() - found.int()).abs().flatten(1).amax(1))
    nearest = torch.stack(distances).min(0)
    assert nearest.values.max() <= 3
    assert len(nearest.indices.unique()) == 6


def test_grey_pictures_are_those_of_pillow():
    pixels = noise(200)
    found = augment(pixels, range(200), Augment(grayscale=1.0), 0)
    wanted = torch.stack([planes(picture(image).convert("L").convert("RGB")) for image in pixels])
    assert (found.int() - wanted.int()).abs().max() <= 1
    assert (found == wanted).float().mean() > 0.99
    assert torch.equal(augment(found, range(200), Augment(grayscale=1.0, saturation=1.0), 0), found)
    some = (augment(pixels, range(200), Augment(grayscale=0.2), 0) != pixels).flatten(1).any(1)
    assert 20 < some.sum() < 60


def test_erased_is_one_rectangle_of_the_mean():
    pixels = torch.full((200, 3, 32, 32), 255, dtype=torch.uint8)
    found = augment(pixels, range(200), Augment(random_erasing=1.0), 0)
    gone = (found != 255).any(1)
    for image, mask in zip(found, gone, strict=True):
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        assert mask.sum() == len(rows) * len(columns)
        assert len(rows) == rows[-1] - rows[0] + 1
        assert 0.015 < len(rows) * len(columns) / 32**2 < 0.35
        assert 0.2 < len(rows) / len(columns) < 5
        normalised = Preprocess().normalise(image[None])[0][:, mask]
        assert normalised.abs().max() < 0.51 / 255 / 0.26
    assert len({mask.numpy().tobytes() for mask in gone}) > 190
    assert [round(255 * mean) for mean in OPENAI_MEAN] == found[0][:, gone[0]][:, 0].tolist()
    some = (augment(pixels, range(200), Augment(random_erasing=0.2), 0) != 255).flatten(1).any(1)
    assert 20 < some.sum() < 60


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"horizontal_flip": 1.5}, "augment.horizontal_flip: input should be less than or equal to 1 (found 1.5)"),
        ({"brightness": -0.1}, "augment.brightness: input should be greater than or equal to 0 (found -0.1)"),
        ({"random_crop_padding": -1}, "augment.random_crop_padding: input should be greater than or equal to 0"),
        ({"random_crop_padding": 0.5}, "augment.random_crop_padding: input should be a valid integer (found 0.5)"),
        ({"random_resized_crop": [0.9]}, "augment.random_resized_crop: takes the smallest and largest share"),
        ({"random_resized_crop": [0.9, 0.5]}, "as in [0.9, 1.0] (found [0.9, 0.5])"),
        ({"random_resized_crop": [0, 1]}, "above 0 and up to 1"),
        ({"random_resized_crop": 0.9}, "augment.random_resized_crop: input should be an instance of Sequence"),
        ({"horizontal_flop": 1}, "unknown key 'horizontal_flop'"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        parse(Augment, settings, "augment")
    assert "\n" not in str(caught.value)


def test_settings_are_those_of_yaml():
    how = parse(Augment, {"random_resized_crop": [0.9, 1], "horizontal_flip": 1}, "augment")
    assert how == Augment(random_resized_crop=[0.9, 1.0], horizontal_flip=1.0)
    assert parse(Augment, how.model_dump(mode="json"), "augment") == how
