"""Small pieces of artwork with a transparent ground, and stamping them onto a picture.

The atlas `art/sprites.png` has one row per thing and one column per style, in cells of 32x32; `art/sprites.json` names
rows and columns. `scripts/tiny/atlas.py` made it from three collections of emoji (see NOTICE).
"""

import json
import math
from functools import cache
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image

from clipfuse.tiny.canvas import SIDE

ATLAS = Path(__file__).parent / "art" / "sprites"
CELL = 32
"""Width and height of a cell, in pixels."""


@cache
def sprites() -> dict[str, tuple[Image.Image, ...]]:
    """Every thing's pictures, one per style, RGBA (32, 32)."""
    index = json.loads(ATLAS.with_suffix(".json").read_text(encoding="utf-8"))
    with Image.open(ATLAS.with_suffix(".png")) as sheet:
        sheet = sheet.convert("RGBA")
    return {
        name: tuple(
            sheet.crop((column * CELL, row * CELL, (column + 1) * CELL, (row + 1) * CELL))
            for column in range(len(index["styles"]))
        )
        for row, name in enumerate(index["things"])
    }


def tinted(art: Image.Image, random: Generator, spread: float) -> Image.Image:
    """The same thing in another light: colours mixed and scaled a little, `spread` of 0 to about 0.4."""
    pixels = np.asarray(art, np.float64)
    mixing = np.eye(3) + random.normal(0, spread / 2, (3, 3))
    mixing *= 1 + random.normal(0, spread / 2)
    # Not a matrix product: those round differently from one machine to the next.
    mixed = sum(pixels[..., i : i + 1] * mixing[i] for i in range(3))
    colour = np.rint(np.clip(mixed, 0, 255))
    return Image.fromarray(np.concatenate([colour, pixels[..., 3:]], axis=2).astype(np.uint8))


def stamp(
    ground: Image.Image, art: Image.Image, random: Generator, centre: tuple[float, float], size: float, turn: float
) -> None:
    """Put `art` onto `ground` (RGBA, 32x32) in place: around `centre`, `size` pixels wide, flipped or not, turned.

    `turn` is the greatest angle either way, in radians.
    """
    angle = random.uniform(-turn, turn)
    wide, high = size * random.uniform(0.85, 1.15), size
    mirror = -1 if random.random() < 0.5 else 1
    cosine, sine = math.cos(angle), math.sin(angle)
    # From a pixel of the picture back to one of the sprite.
    a, b = mirror * cosine * CELL / wide, mirror * sine * CELL / wide
    d, e = -sine * CELL / high, cosine * CELL / high
    x, y = centre
    back = (a, b, CELL / 2 - a * x - b * y, d, e, CELL / 2 - d * x - e * y)
    layer = art.transform((SIDE, SIDE), Image.Transform.AFFINE, back, Image.Resampling.BILINEAR)
    ground.alpha_composite(layer)
