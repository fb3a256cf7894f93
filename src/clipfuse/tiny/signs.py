"""tiny-signs: sixteen traffic signs, drawn, seen askew, out of focus and at all hours.

The test split's speed limits are set in typefaces of their own.
"""

import math
from collections.abc import Iterator
from functools import partial

import numpy as np
from numpy.random import Generator

from clipfuse.tiny.canvas import SIDE, Patch, arrow, bar, cloud, disc, ngon, paint, palette, pose, weather
from clipfuse.tiny.glyphs import CELL, cover, faces, set_number
from clipfuse.tiny.housenumbers import FACES
from clipfuse.tiny.task import Example, TinyTask, drawings

NAME = "tiny-signs"
COLOURS = {
    "red": (198, 32, 42),
    "white": (236, 236, 234),
    "blue": (26, 84, 172),
    "yellow": (242, 198, 44),
    "green": (34, 150, 70),
    "black": (24, 24, 26),
}
UP, DOWN, LEFT, RIGHT = -math.pi / 2, math.pi / 2, math.pi, 0.0

WARNING = (ngon("red", 3, 1.15, UP, (0, 0.2)), ngon("white", 3, 0.76, UP, (0, 0.2)))
BAN = (disc("red", 1.0), disc("blue", 0.78))
ORDER = (disc("white", 1.0), disc("blue", 0.93))
LIMIT = (disc("red", 1.0), disc("white", 0.76))

SIGNS: dict[str, tuple[Patch, ...]] = {
    "stop": (
        ngon("white", 8, 1.04, math.pi / 8),
        ngon("red", 8, 0.94, math.pi / 8),
        *(bar("white", (x, -0.26), (x, 0.26), 0.16) for x in (-0.57, -0.19, 0.19, 0.57)),
    ),
    "give way": (ngon("red", 3, 1.15, DOWN, (0, -0.2)), ngon("white", 3, 0.68, DOWN, (0, -0.2))),
    "no entry": (disc("red", 1.0), bar("white", (-0.66, 0), (0.66, 0), 0.34)),
    "no parking": (*BAN, bar("red", (-0.58, -0.58), (0.58, 0.58), 0.24)),
    "no stopping": (
        *BAN,
        bar("red", (-0.58, -0.58), (0.58, 0.58), 0.22),
        bar("red", (0.58, -0.58), (-0.58, 0.58), 0.22),
    ),
    "priority road": (ngon("white", 4, 1.08), ngon("yellow", 4, 0.78)),
    "general caution": (*WARNING, bar("black", (0, -0.3), (0, 0.22), 0.2), disc("black", 0.11, (0, 0.42))),
    "crossroads": (
        *WARNING,
        bar("black", (-0.27, -0.07), (0.27, 0.47), 0.17),
        bar("black", (0.27, -0.07), (-0.27, 0.47), 0.17),
    ),
    "traffic signals": (
        *WARNING,
        *(disc(colour, 0.15, (0, y)) for colour, y in (("red", -0.2), ("yellow", 0.13), ("green", 0.46))),
    ),
    "turn left": (*ORDER, arrow("white", LEFT)),
    "turn right": (*ORDER, arrow("white", RIGHT)),
    "ahead only": (*ORDER, arrow("white", UP)),
    "speed limit 30": LIMIT,
    "speed limit 50": LIMIT,
    "speed limit 60": LIMIT,
    "speed limit 80": LIMIT,
}
NAMES = tuple(SIGNS)


def draw(label: int, random: Generator, sort: str = "seen") -> np.ndarray:
    """One sign in the street: (32, 32, 3) uint8; `sort` is that of a number's typeface."""
    place = pose(random, radius=(9.0, 14.5), turn=0.3, shear=0.18, shift=2.5)
    street = paint(SIGNS[NAMES[label]], palette(random, COLOURS), place, cloud(random))
    number = NAMES[label].removeprefix("speed limit ")
    if number.isdecimal():
        street = lettered(street, number, place, sort, random)
    return weather(street, random, blur=1.2, light=(0.4, 1.15), grain=9)


def lettered(street: np.ndarray, number: str, place: np.ndarray, sort: str, random: Generator) -> np.ndarray:
    """The sign that `place` has put into the street with a black number in its middle."""
    of_sort = faces()[sort]
    ink = set_number(of_sort[random.integers(len(of_sort))], number)
    high, wide = 0.85, min(1.15, 0.85 * ink.width / CELL)
    back = np.diag([ink.width / wide, CELL / high]) @ np.linalg.inv(place[:, :2])
    shift = np.array([ink.width / 2, CELL / 2]) - back @ place[:, 2]
    a, b, d, e = (float(v) for v in back.ravel())
    where = cover(ink, (a, b, float(shift[0]), d, e, float(shift[1])), SIDE)
    return (street + (np.array(COLOURS["black"]) - street) * where).astype(np.uint8)


def examples(split: str) -> Iterator[Example]:
    """The drawings of a split, its numbers in its typefaces."""
    return drawings(NAME, len(SIGNS), partial(draw, sort=FACES[split]))(split)


TASK = TinyTask(
    name=NAME,
    classes=NAMES,
    templates=("a photo of a {c} traffic sign.",),
    examples=examples,
    licence="that of clipfuse; SIL Open Font License 1.1 (the typefaces of the numbers)",
)
