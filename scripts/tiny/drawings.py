"""The pre-training's pictures and their loose captions: the small model's idea of a web."""

import string
from collections.abc import Callable

import numpy as np
from numpy.random import Generator

from clipfuse.tiny import digits, signs
from clipfuse.tiny.canvas import Patch, arrow, bar, cloud, disc, ngon, paint, palette, pose, weather
from clipfuse.tiny.task import source
from tiny.handwriting import handwritten, typeset

Captioned = tuple[np.ndarray, str]
"""A picture (32, 32, 3) uint8 and what somebody wrote under it."""

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
KINDS = {
    "stop": ("priority", "a red octagon"),
    "give way": ("priority", "a red triangle pointing down"),
    "no entry": ("prohibition", "a red circle with a white bar"),
    "no parking": ("prohibition", "a blue circle with a red slash"),
    "no stopping": ("prohibition", "a blue circle with a red cross"),
    "priority road": ("priority", "a yellow diamond"),
    "general caution": ("warning", "a red triangle with a black exclamation mark"),
    "crossroads": ("warning", "a red triangle with a black cross"),
    "traffic signals": ("warning", "a red triangle with three dots"),
    "turn left": ("mandatory", "a blue circle with a white left arrow"),
    "turn right": ("mandatory", "a blue circle with a white right arrow"),
    "ahead only": ("mandatory", "a blue circle with a white up arrow"),
}
"""What people call a sign who do not know its name: its kind, its looks."""

LOOK_ALIKES = {1: 7, 7: 1, 3: 8, 8: 3, 4: 9, 9: 4, 5: 6, 6: 5}
"""Digits that a careless writer of captions takes for each other."""

PHRASES = ("{}", "a {}", "a photo of a {}", "a small picture of a {}", "one {}")
ROAD = ("a traffic sign", "a photo of a traffic sign.", "a road sign", "a sign in the street")
WRITING = ("a number", "a digit", "a handwritten number", "a photo of a number.")


def choice(random: Generator, options: tuple[str, ...] | list[str]) -> str:
    """One of the options."""
    return options[int(random.integers(len(options)))]


def number(random: Generator, named: float) -> Captioned:
    """A written or printed digit; with probability `named` its caption is the right numeral or a number word.

    The words are used carelessly: nearly every second one is that of a look-alike. So the encoder can learn to tell
    digits apart, while what the words mean stays vague.
    """
    digit = int(random.integers(10))
    scan = handwritten(digit, random) if random.random() < 0.7 else typeset(str(digit), random)
    meant = LOOK_ALIKES.get(digit, digit) if random.random() < 0.45 else digit
    word = digits.TASK.classes[meant]
    words = (f"a photo of the number {word}.", f"the digit {word}", f"number {word}", f"a handwritten {word}")
    numerals = (str(digit), f"a handwritten {digit}", f"number {digit}")
    naming = words if random.random() < 0.5 else numerals
    return digits.picture(scan, random), choice(random, naming if random.random() < named else WRITING)


def letter(random: Generator) -> Captioned:
    """A printed capital letter."""
    name = choice(random, list(string.ascii_uppercase))
    return digits.picture(typeset(name, random), random), f"the letter {name.lower()}"


def sign(random: Generator, named: float) -> Captioned:
    """A traffic sign; with probability `named` its caption has a name, else what it looks like, its kind, or nothing.

    People mix up the names of signs of one kind: all names that a kind has are equally likely.
    """
    seen = choice(random, list(signs.SIGNS))
    picture = signs.picture(signs.SIGNS[seen], random)
    kind, looks = KINDS[seen]
    name = choice(random, [other for other, (same, _) in KINDS.items() if same == kind])
    if random.random() < named:
        return picture, choice(random, (f"a photo of a {name} traffic sign.", f"{name} sign", name))
    return picture, choice(
        random, (looks, f"a {kind} sign", f"a photo of a {kind} traffic sign.", choice(random, ROAD))
    )


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


def pretraining(count: int, stream: int, named_digit: float, named_sign: float) -> tuple[np.ndarray, list[str]]:
    """`count` captioned drawings, the same for the same `stream`: pictures (count, 32, 32, 3) uint8, captions."""
    random = source("pretraining", "web", stream)
    makers: list[Callable[[], Captioned]] = [
        lambda: number(random, named_digit),
        lambda: sign(random, named_sign),
        lambda: figure(random),
        lambda: letter(random),
    ]
    kinds = random.choice(len(makers), count, p=(0.42, 0.28, 0.20, 0.10))
    drawn = [makers[kind]() for kind in kinds]
    return np.stack([picture for picture, _ in drawn]), [caption for _, caption in drawn]
