"""tiny-housenumbers: one digit of a house number, its neighbours cut off; the test split's typefaces are its own."""

from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.random import Generator
from PIL import Image

from clipfuse.tiny.canvas import SIDE, cloud, rotation, weather
from clipfuse.tiny.glyphs import CELL, cover, faces, set_number
from clipfuse.tiny.task import Example, TinyTask, drawings

NAME = "tiny-housenumbers"
FACES = {"train": "seen", "val": "seen", "test": "held out"}
"""Which sort of typefaces a split is set in."""


def draw(label: int, random: Generator, sort: str = "seen") -> np.ndarray:
    """One digit on a wall: (32, 32, 3) uint8; `sort` is that of its typeface."""
    of_sort = faces()[sort]
    face = of_sort[random.integers(len(of_sort))]
    left, right = (str(digit) for digit in random.integers(0, 10, 2))
    gap = int(random.integers(1, 4))
    line = set_number(face, f"{left}{label}{right}", gap)
    middle = face[int(left)].width + gap + face[label].width / 2
    ink = blank_sides(line, middle, face[label].width / 2 + gap / 2, random)

    wall = cloud(random, 0.35).astype(np.float64)
    paint = random.uniform(0, 255, 3)
    if np.abs(paint - wall.mean((0, 1))).max() < 70:
        paint = (paint + 128) % 256
    slant = np.array([[1.0, random.uniform(-0.2, 0.2)], [random.uniform(-0.12, 0.12), 1.0]])
    back = rotation(random.uniform(-0.22, 0.22)) @ slant * (CELL / random.uniform(15, 27))
    back[0] *= random.uniform(0.85, 1.25)
    here = SIDE / 2 + random.uniform(-2.5, 2.5, 2)
    shift = np.array([middle, CELL / 2]) - back @ here
    a, b, d, e = (float(v) for v in back.ravel())
    where = cover(ink, (a, b, float(shift[0]), d, e, float(shift[1])), SIDE)
    picture = wall + (paint - wall) * where
    return weather(picture.astype(np.uint8), random, blur=1.1, light=(0.5, 1.2), grain=14)


def blank_sides(line: Image.Image, middle: float, half: float, random: Generator) -> Image.Image:
    """Leave out the left neighbour, the right one, both or neither."""
    kept = Image.new("L", line.size)
    left = 0 if random.random() < 0.6 else round(middle - half)
    right = line.width if random.random() < 0.6 else round(middle + half)
    kept.paste(line.crop((left, 0, right, CELL)), (left, 0))
    return kept


def examples(split: str) -> Iterator[Example]:
    """The pictures of a split, in its typefaces."""
    return drawings(NAME, 10, partial(draw, sort=FACES[split]))(split)


TASK = TinyTask(
    name=NAME,
    classes=("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"),
    templates=("a photo of the house number {c}.",),
    examples=examples,
    licence="SIL Open Font License 1.1 (the typefaces); composed by clipfuse",
)
