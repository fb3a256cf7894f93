"""Pillow's bicubic resize to the bit, as two float64 matrix products: for devices where images already lie.

Pillow works on 8 bits with coefficients of 22-bit fixed point and rounds to 8 bits between its two passes. Sums of such
products need less than 40 bits: float64 holds them without error, in any order.
"""

from functools import cache, lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipfuse.errors import ModelError
from clipfuse.shapes import Float, UInt8

PRECISION_BITS = 22
SUPPORT = 2.0
TEMPORARY_BYTES = 1 << 28
"""Float64 temporaries in use at once."""
CACHE_BYTES = 1 << 23
"""The same on a CPU: what is likely to stay in its cache."""


def resize_crop(
    images: UInt8[Tensor, "batch 3 height width"], size: int, crop: int
) -> UInt8[Tensor, "batch 3 crop crop"]:
    """The pixels of `Preprocess(size, crop).pixels` of each image, bit for bit, computed on the images' device.

    Args:
        images: RGB images of one shape.
        size: What the shortest side becomes, in pixels.
        crop: Side of the square that is cut from the centre, at most `size`.

    Raises:
        ModelError: the crop is larger than the size.
    """
    if not 0 < crop <= size:
        raise ModelError(f"a crop of {crop} from a shortest side of {size}: takes a crop from 1 to that size")
    height, width = images.shape[2:]
    short = min(height, width)
    tall, wide = int(size * height / short), int(size * width / short)
    rows, down = axis(height, tall, crop, images.device)
    columns, across = axis(width, wide, crop, images.device)
    # the passes round to 8 bits, so that their order shows
    vertical_first = height - tall > max(0, 2 * (width - wide)) and knows_vertical_first()
    planes = images[:, :, rows, columns].flatten(0, 1)
    found = torch.empty(len(planes), crop, crop, dtype=torch.uint8, device=images.device)
    step = most_planes(planes.shape[1], planes.shape[2], crop, images.device)
    for start in range(0, len(planes), step):
        part = planes[start : start + step]
        if down is not None and vertical_first:
            part = rounded(down @ part.double())
        if across is not None:
            part = rounded(part.double() @ across.T)
        if down is not None and not vertical_first:
            part = rounded(down @ part.double())
        found[start : start + step] = part
    return found.unflatten(0, (-1, 3))


@cache
def knows_vertical_first() -> bool:
    """Whether this Pillow shrinks vertically first where that takes away much more rows than columns.

    Pillow 13 does where the rows taken away are more than twice the columns; before, it never did. In one direction a
    time there is no choice, so that a picture in which the order shows tells.
    """
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 2, (64, 8), dtype=np.uint8) * 255)
    bicubic = Image.Resampling.BICUBIC
    horizontal_first = noise.resize((4, 64), bicubic).resize((4, 8), bicubic)
    return noise.resize((4, 8), bicubic).tobytes() != horizontal_first.tobytes()


def most_planes(height: int, width: int, crop: int, device: torch.device) -> int:
    """How many planes are worked on at once."""
    most = CACHE_BYTES if device.type == "cpu" else TEMPORARY_BYTES
    return max(1, most // (8 * (height * width + max(height, width) * crop + crop * crop)))


def rounded(sums: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """To whole numbers of 8 bits as Pillow does, halves upwards; in place."""
    return sums.add_(0.5).floor_().clamp_(0, 255)


@lru_cache(128)
def axis(inside: int, outside: int, crop: int, device: torch.device) -> tuple[slice, Tensor | None]:
    """What resizing one side and cutting its centre takes: pixels that are looked at, and their weights.

    Weights are (crop, pixels) on the device; None where the side keeps its length, so that Pillow skips the pass.
    """
    first = (outside - crop) // 2
    if inside == outside:
        return slice(first, first + crop), None
    low, weights = coefficients(inside, outside, first, crop)
    return slice(low, low + weights.shape[1]), torch.from_numpy(weights).to(device)


def coefficients(inside: int, outside: int, first: int, count: int) -> tuple[int, Float[np.ndarray, "count taps"]]:
    """Weights of the inside pixels from `low` on in the outside pixels `first` … `first + count − 1`.

    w(x) = bicubic((x + ½ − centre) / f), f = max(inside / outside, 1), normalised to sum 1 over the pixels that exist,
    then rounded to multiples of 2⁻²², halves away from zero. The order of operations is Pillow's: it decides bits.
    """
    scale = inside / outside
    stretch = max(scale, 1.0)
    support = SUPPORT * stretch
    centre = (np.arange(first, first + count) + 0.5) * scale
    start = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    stop = np.minimum((centre + support + 0.5).astype(np.int64), inside)
    places = start[:, None] + np.arange((stop - start).max())
    inner = places < stop[:, None]
    weights = np.where(inner, bicubic((places - centre[:, None] + 0.5) * (1.0 / stretch)), 0.0)
    weights /= np.cumsum(weights, axis=1)[:, -1:]  # a sum from left to right; np.sum adds in pairs
    fixed = np.trunc(weights * 2**PRECISION_BITS + np.copysign(0.5, weights)) / 2**PRECISION_BITS
    low = int(start[0])
    dense = np.zeros((count, int(stop[-1]) - low))
    dense[np.nonzero(inner)[0], places[inner] - low] = fixed[inner]
    return low, dense


def bicubic(x: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Keys' cubic kernel with a = −½."""
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
