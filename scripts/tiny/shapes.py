"""Figures with marks in them, and letters: pictures of the pre-training that belong to no task."""

import string
from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from clipfuse.tiny import digits, signs
from clipfuse.tiny.canvas import Patch, arrow, bar, cloud, disc, ngon, paint, palette, pose, weather
from tiny.captions import PHRASES, Captioned, choice
from tiny.handwriting import typeset

INKS = {
    **signs.COLOURS,
    "orange": (236, 124, 30),
    "purple": (126, 50, 150),
    "brown": (118, 72, 38),
    "grey": (128, 128, 128),
    "pink": (240, 140, 180),
}
FIGURES: dict[str, Callable[[str, float], Patch]] = {
    "triangle": lambda colour, size: ngon(colour, 3, size * 1.1, signs.UP),
    "circle": disc,
    "square": lambda colour, size: ngon(colour, 4, size, np.pi / 4),
    "diamond": lambda colour, size: ngon(colour, 4, size),
    "octagon": lambda colour, size: ngon(colour, 8, size, np.pi / 8),
}
MARKS: dict[str, Callable[[str], list[Patch]]] = {
    "cross": lambda ink: [bar(ink, (-0.4, -0.4), (0.4, 0.4), 0.2), bar(ink, (0.4, -0.4), (-0.4, 0.4), 0.2)],
    "slash": lambda ink: [bar(ink, (-0.45, -0.45), (0.45, 0.45), 0.22)],
    "bar": lambda ink: [bar(ink, (-0.5, 0), (0.5, 0), 0.3)],
    "dot": lambda ink: [disc(ink, 0.3)],
    "exclamation mark": lambda ink: [bar(ink, (0, -0.45), (0, 0.15), 0.2), disc(ink, 0.12, (0, 0.4))],
    "left arrow": lambda ink: [arrow(ink, signs.LEFT, 1.1)],
    "right arrow": lambda ink: [arrow(ink, signs.RIGHT, 1.1)],
    "up arrow": lambda ink: [arrow(ink, signs.UP, 1.1)],
}


def letter(random: Generator) -> Captioned:
    """A printed capital letter."""
    name = choice(random, list(string.ascii_uppercase))
    return digits.picture(typeset(name, random), random), f"the letter {name.lower()}"


def figure(random: Generator) -> Captioned:
    """A figure in one colour with a mark in another, or without one."""
    shape, mark = choice(random, list(FIGURES)), choice(random, list(MARKS))
    fill, rim, ink = (str(name) for name in random.choice(list(INKS), 3, replace=False))
    patches = [FIGURES[shape](rim, 1.0), FIGURES[shape](fill, random.uniform(0.7, 0.95))]
    text = choice(random, PHRASES).format(f"{fill} {shape}")
    if random.random() < 0.7:
        patches += MARKS[mark](ink)
        text = choice(random, (f"{text} with a {ink} {mark}", f"a {ink} {mark} on a {shape}", f"a {mark}"))
    place = pose(random, radius=(8, 15), turn=0.3, shear=0.15, shift=4)
    drawn = paint(patches, palette(random, INKS), place, cloud(random, random.uniform(0, 0.8)))
    return weather(drawn, random, blur=1.0, light=(0.5, 1.15), grain=9), text
