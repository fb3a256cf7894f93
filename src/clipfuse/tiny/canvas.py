"""Drawing on a 32x32 canvas: polygons in unit coordinates, cloudy backgrounds, and bad weather.

Unit coordinates: x to the right, y down, the figure about inside [-1, 1]². Only filled polygons are drawn, four times
enlarged and then averaged: that leaves little that could differ between two versions of Pillow.
"""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

SIDE = 32
"""Width and height of every picture, in pixels."""

ENLARGED = 4
"""Drawing happens this many times larger."""

Colour = tuple[int, int, int]


class Patch(NamedTuple):
    """A filled polygon: the name of its colour, and its corners (n, 2) in unit coordinates."""

    colour: str
    corners: np.ndarray


def ngon(
    colour: str, corners: int, radius: float, turn: float = 0.0, centre: tuple[float, float] = (0.0, 0.0)
) -> Patch:
    """Regular polygon; `turn` (radians) is where its first corner lies, counted clockwise from the right."""
    angle = turn + np.arange(corners) * (2 * math.pi / corners)
    return Patch(colour, np.stack([np.cos(angle), np.sin(angle)], axis=1) * radius + np.array(centre))


def disc(colour: str, radius: float, centre: tuple[float, float] = (0.0, 0.0)) -> Patch:
    """Circle, as a polygon of 28 corners."""
    return ngon(colour, 28, radius, 0.0, centre)


def bar(colour: str, start: tuple[float, float], end: tuple[float, float], width: float) -> Patch:
    """Straight stroke from `start` to `end`."""
    a, b = np.array(start), np.array(end)
    along = (b - a) / np.hypot(*(b - a))
    side = np.array([-along[1], along[0]]) * (width / 2)
    return Patch(colour, np.stack([a + side, b + side, b - side, a - side]))


def arrow(colour: str, angle: float, length: float = 1.3, width: float = 0.24) -> Patch:
    """Arrow through the centre, pointing at `angle` (radians, clockwise from the right)."""
    half, wide, neck = length / 2, 1.5 * width, length / 2 - 1.7 * width
    shape = [(half, 0), (neck, wide), (neck, width / 2), (-half, width / 2)]
    shape += [(-half, -width / 2), (neck, -width / 2), (neck, -wide)]
    return Patch(colour, np.array(shape) @ rotation(angle).T)


def rotation(angle: float) -> np.ndarray:
    """(2, 2) matrix that turns clockwise (y points down) by `angle` radians."""
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def pose(random: Generator, radius: tuple[float, float], turn: float, shear: float, shift: float) -> np.ndarray:
    """Random placement: (2, 3) map from unit coordinates to pixels.

    Args:
        random: where the randomness comes from.
        radius: least and greatest radius, in pixels.
        turn: greatest rotation either way, in radians.
        shear: greatest shear either way, as a share.
        shift: greatest shift either way, in pixels.
    """
    slant = np.array([[1.0, random.uniform(-shear, shear)], [random.uniform(-shear, shear), 1.0]])
    matrix = rotation(random.uniform(-turn, turn)) @ slant * random.uniform(*radius)
    return np.column_stack([matrix, SIDE / 2 + random.uniform(-shift, shift, 2)])


def cloud(random: Generator, contrast: float = 0.5) -> np.ndarray:
    """Background of soft spots: (32, 32, 3) uint8; `contrast` 0 is one plain colour, 1 is anything."""
    cells = int(random.integers(2, 6))
    spots = random.integers(0, 256, (cells, cells, 3)) * contrast + random.integers(0, 256, 3) * (1 - contrast)
    image = Image.fromarray(spots.astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return np.asarray(image)


def palette(random: Generator, colours: Mapping[str, Colour], spread: float = 14.0) -> dict[str, Colour]:
    """The colours, each a little off; `spread` is a standard deviation in grey levels (of 255)."""
    return {name: as_colour(np.array(value) + random.normal(0, spread, 3)) for name, value in colours.items()}


def as_colour(value: np.ndarray) -> Colour:
    """Three numbers as a colour, cut off at 0 and 255."""
    red, green, blue = (int(v) for v in np.clip(value, 0, 255))
    return red, green, blue


def paint(
    patches: Iterable[Patch], colours: Mapping[str, Colour], place: np.ndarray, background: np.ndarray
) -> np.ndarray:
    """Draw the patches in order on a background: (32, 32, 3) uint8.

    `place` is the (2, 3) map of `pose`; `background` is (32, 32, 3) uint8 and stays as it is.
    """
    wide = SIDE * ENLARGED
    layer = Image.new("RGBA", (wide, wide), (0, 0, 0, 0))
    pen = ImageDraw.Draw(layer)
    for colour, corners in patches:
        pixels = (corners @ place[:, :2].T + place[:, 2]) * ENLARGED
        pen.polygon(pixels.ravel().tolist(), fill=(*colours[colour], 255))
    canvas = Image.fromarray(background).convert("RGBA")
    canvas.alpha_composite(layer.reduce(ENLARGED))
    return np.asarray(canvas.convert("RGB"))


def weather(
    picture: np.ndarray, random: Generator, blur: float, light: tuple[float, float], grain: float
) -> np.ndarray:
    """Blur (up to `blur` pixels), darken or brighten (a factor in `light`), add noise (up to `grain` grey levels).

    `picture` is (32, 32, 3) uint8; so is the result.
    """
    soft = Image.fromarray(picture).filter(ImageFilter.GaussianBlur(random.uniform(0, blur)))
    lit = np.asarray(soft, np.float64) * random.uniform(*light)
    noisy = lit + random.normal(0, random.uniform(0, grain), lit.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
