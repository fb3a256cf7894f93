"""Random changes of preprocessed images for training, named as in torchvision and open_clip; none by default.

They work on what the image cache holds: the shortest side resized, the centre cut out. torchvision's and open_clip's
pipelines crop the original image instead, so that a random crop here has less detail and never sees what lies outside
of the centre.

An image's random numbers depend on the seed and on its key only, not on its batch, and those of one change not on
which others are on: an image has the same bits in any batch, on one process or several, resumed or not.
"""

from collections.abc import Sequence
from math import exp, log, sqrt
from typing import Annotated

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from clipfuse.config import Config
from clipfuse.data.preprocess import OPENAI_MEAN
from clipfuse.shapes import Float, Int, UInt8

ATTEMPTS = 10
"""Rectangles that are tried until one fits, as torchvision does."""
CROP_RATIO = (3 / 4, 4 / 3)
ERASED_SHARE, ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)
CROP, PLACE, FLIP, COLOUR, GREY, ERASE = range(6)
"""Streams of random numbers, one for each change."""

Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0, le=1)]


class Augment(Config):
    """Random changes of training images; all are off by default. They are made in the order in which they stand here.

    Crops are of the preprocessed image (shortest side resized, centre cut out), where torchvision's and open_clip's
    pipelines crop the original.
    """

    random_resized_crop: Sequence[float] | None = None
    """Smallest and largest share of the area that is cut out, as in [0.9, 1.0], with sides 3:4 to 4:3, and resized back
    (bicubic, antialiased, in float32)."""
    random_crop_padding: Annotated[int, Field(ge=0)] = 0
    """Pixels that are added on each side by reflection, before a crop of the original size."""
    horizontal_flip: Probability = 0.0
    """Probability of a mirror image."""
    brightness: Strength = 0.0
    """x: colours are multiplied with a factor from [1 − x, 1 + x]. Brightness, contrast and saturation come in random
    order, and are rounded once."""
    contrast: Strength = 0.0
    """x: distances from the image's mean grey are multiplied with a factor from [1 − x, 1 + x]."""
    saturation: Strength = 0.0
    """x: distances from each pixel's grey are multiplied with a factor from [1 − x, 1 + x]."""
    grayscale: Probability = 0.0
    """Probability of grey instead of colours."""
    random_erasing: Probability = 0.0
    """Probability that a rectangle of 2 to 33 % of the area is filled with OpenAI's mean, which is 0 when normalised
    (to half a grey level)."""

    @field_validator("random_resized_crop")
    @classmethod
    def is_range(cls, value: Sequence[float] | None) -> Sequence[float] | None:
        if value is not None and not (len(value) == 2 and 0 < value[0] <= value[1] <= 1):
            raise ValueError(
                f"takes the smallest and largest share of the area, above 0 and up to 1, as in [0.9, 1.0] "
                f"(found {list(value)!r:.80})"
            )
        return value

    @property
    def active(self) -> bool:
        """Whether anything is on."""
        return self != Augment()


def augment(
    pixels: UInt8[Tensor, "batch 3 side side"], keys: Sequence[int], how: Augment, seed: int
) -> UInt8[Tensor, "batch 3 side side"]:
    """Changed images, on the device of `pixels`; `pixels` themselves where nothing is on.

    Args:
        pixels: Preprocessed images; they are not changed.
        keys: For each image, its place in the stream of training images.
        how: What is changed.
        seed: Of the random numbers, together with the key.
    """
    if not how.active or not len(pixels):
        return pixels
    return torch.stack([changed(image, key, how, seed) for image, key in zip(pixels, keys, strict=True)])


def changed(image: UInt8[Tensor, "3 side side"], key: int, how: Augment, seed: int) -> UInt8[Tensor, "3 side side"]:
    """One image; it may be `image` itself."""
    side = image.shape[-1]
    if how.random_resized_crop:
        box = rectangle(draws(seed, key, CROP), side, how.random_resized_crop, CROP_RATIO)
        image = resized(image, *box) if box else image
    if how.random_crop_padding:
        image = shifted(image, how.random_crop_padding, draws(seed, key, PLACE))
    if how.horizontal_flip and draws(seed, key, FLIP).random() < how.horizontal_flip:
        image = image.flip(-1)
    if how.brightness or how.contrast or how.saturation:
        image = jittered(image, (how.brightness, how.contrast, how.saturation), draws(seed, key, COLOUR))
    if how.grayscale and draws(seed, key, GREY).random() < how.grayscale:
        image = eight_bits(grey(image.float())).expand(3, -1, -1)
    if how.random_erasing and (random := draws(seed, key, ERASE)).random() < how.random_erasing:
        box = rectangle(random, side, ERASED_SHARE, ERASED_RATIO, whole=False)
        image = erased(image, *box) if box else image
    return image


def draws(seed: int, key: int, change: int) -> np.random.Generator:
    """The random numbers of one change of one image."""
    parts = np.array([seed % 2**64, key % 2**64], np.uint64)
    return np.random.Generator(np.random.Philox(key=parts, counter=np.array([0, 0, 0, change], np.uint64)))


def rectangle(
    random: np.random.Generator, side: int, share: Sequence[float], ratio: Sequence[float], whole: bool = True
) -> tuple[int, int, int, int] | None:
    """Top, left, height and width of a random part of a square; None if no attempt fits.

    Args:
        random: Gives the numbers.
        side: Of the square, pixels.
        share: Smallest and largest share of the area, uniform.
        ratio: Smallest and largest ratio of the sides, uniform in its logarithm.
        whole: Whether the part may be as long as the side.
    """
    for _ in range(ATTEMPTS):
        area = side**2 * random.uniform(share[0], share[1])
        stretch = exp(random.uniform(log(ratio[0]), log(ratio[1])))
        height, width = round(sqrt(area / stretch)), round(sqrt(area * stretch))
        if min(height, width) > 0 and max(height, width) < side + whole:
            top, left = random.integers(side - height + 1), random.integers(side - width + 1)
            return int(top), int(left), height, width
    return None


def resized(
    image: UInt8[Tensor, "3 side side"], top: int, left: int, height: int, width: int
) -> UInt8[Tensor, "3 side side"]:
    """A part of an image in the size of the whole."""
    part = image[None, :, top : top + height, left : left + width].float()
    return eight_bits(torch.nn.functional.interpolate(part, image.shape[1:], mode="bicubic", antialias=True)[0])


def shifted(image: UInt8[Tensor, "3 side side"], padding: int, random: np.random.Generator) -> Tensor:
    """An image moved by up to `padding` pixels each way; what comes in is its reflection."""
    side = image.shape[-1]
    down, right = random.integers(-padding, padding + 1, 2).tolist()
    rows, columns = reflected(side, down, image.device), reflected(side, right, image.device)
    return image.index_select(1, rows).index_select(2, columns)


def reflected(side: int, shift: int, device: torch.device) -> Int[Tensor, "side"]:
    """Places `shift`, `shift` + 1, … of a line of pixels that is reflected at its first and last, over and over."""
    period = max(2 * (side - 1), 1)
    places = torch.arange(shift, shift + side, device=device) % period
    return torch.minimum(places, period - places)


def jittered(
    image: UInt8[Tensor, "3 side side"], strengths: Sequence[float], random: np.random.Generator
) -> UInt8[Tensor, "3 side side"]:
    """Brightness, contrast and saturation changed, in random order."""
    factors = [1 + strength * draw for strength, draw in zip(strengths, random.uniform(-1, 1, 3).tolist(), strict=True)]
    found = image.float()
    for step in random.permutation(3).tolist():
        if strengths[step]:
            centre = (torch.zeros_like, mean_grey, grey)[step](found)
            found = (found * factors[step] + centre * (1 - factors[step])).clamp(0, 255)
    return eight_bits(found)


def grey(image: Float[Tensor, "3 side side"]) -> Float[Tensor, "1 side side"]:
    """Luma of ITU-R 601-2, as Pillow's."""
    red, green, blue = image
    return (red * 0.299 + green * 0.587 + blue * 0.114)[None]


def mean_grey(image: Float[Tensor, "3 side side"]) -> Float[Tensor, ""]:
    """Mean of the rounded grey values: a sum of integers is the same on any number of threads."""
    return grey(image).round().int().sum() / image[0].numel()


def erased(
    image: UInt8[Tensor, "3 side side"], top: int, left: int, height: int, width: int
) -> UInt8[Tensor, "3 side side"]:
    """An image with a part filled."""
    fill = torch.tensor([round(255 * mean) for mean in OPENAI_MEAN], dtype=torch.uint8, device=image.device)
    found = image.clone()
    found[:, top : top + height, left : left + width] = fill.view(3, 1, 1)
    return found


def eight_bits(values: Float[Tensor, "channel side side"]) -> UInt8[Tensor, "channel side side"]:
    return values.round().clamp(0, 255).to(torch.uint8)
