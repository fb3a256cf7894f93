"""The pre-training's pictures and captions: the small model's idea of a web."""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache

import numpy as np
from numpy.random import Generator
from PIL import Image

from clipfuse.tiny import aerial, digits, housenumbers, landcover, scenes, signs, textures, vehicles
from clipfuse.tiny.canvas import SIDE, cloud, weather
from clipfuse.tiny.sprites import stamp, tinted
from clipfuse.tiny.task import TinyTask, source
from tiny import sources
from tiny.captions import PHRASES, Captioned, caption, choice
from tiny.handwriting import handwritten, typeset
from tiny.shapes import figure, letter

BLOCK = 2000
"""Pictures drawn from one stream of random numbers."""

GROUPS = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects", "Smileys & Emotion")

GARMENTS = (
    ("t-shirt", "a short sleeved top", "summer wear"),
    ("trousers", "a pair of pants", "two long legs"),
    ("pullover", "a warm jumper", "a knitted top with long sleeves"),
    ("dress", "a gown", "a long one piece for a lady"),
    ("coat", "a jacket for winter", "an overcoat with a row of buttons"),
    ("sandal", "an open shoe", "straps over a thin sole"),
    ("shirt", "a blouse", "a top with a collar"),
    ("sneaker", "a sports shoe", "a flat trainer with laces"),
    ("bag", "a purse", "a square thing with a handle"),
    ("ankle boot", "a high shoe", "a boot with a heel"),
)
"""What people call the ten classes of Fashion-MNIST."""


@cache
def things() -> tuple[tuple[str, tuple[Image.Image, ...]], ...]:
    """All emoji of things: a name in words, and its pictures."""
    names = [name for name, entry in sources.emoji().items() if entry["category"] in GROUPS]
    found = ((name, tuple(sources.artwork(name, 32))) for name in names)
    return tuple((name.replace("_", " "), art) for name, art in found if art)


def drawn(task: TinyTask, draw: Callable[[int, Generator], np.ndarray]) -> Callable[[Generator], Captioned]:
    """Pictures as a task has them, loosely captioned."""

    def make(random: Generator) -> Captioned:
        label = int(random.integers(len(task.classes)))
        return draw(label, random), caption(task, label, random)

    return make


def handwriting(label: int, random: Generator) -> np.ndarray:
    """A digit written by an invented hand, or typed; never one of the task's scans."""
    scan = handwritten(label, random) if random.random() < 0.75 else typeset(str(label), random)
    return digits.picture(scan, random)


def thing(random: Generator) -> Captioned:
    """One thing, or two side by side, or one above the other."""
    ground = Image.fromarray(cloud(random, random.uniform(0, 0.7))).convert("RGBA")
    count = 1 if random.random() < 0.6 else 2
    names = []
    centres = [(16.0, 16.0)] if count == 1 else [(9.0, 16.0), (23.0, 16.0)]
    upright = random.random() < 0.4
    for x, y in centres:
        name, art = things()[random.integers(len(things()))]
        names.append(name)
        centre = (y, x) if upright else (x, y)
        size = random.uniform(18, 30) if count == 1 else random.uniform(13, 18)
        near = (centre[0] + random.uniform(-3, 3), centre[1] + random.uniform(-3, 3))
        stamp(ground, tinted(art[random.integers(len(art))], random, 0.2), random, near, size, 0.3)
    picture = weather(np.asarray(ground.convert("RGB")), random, blur=0.9, light=(0.6, 1.15), grain=9)
    joint = choice(random, (" above a ", " over a ") if upright else (" and a ", " beside a ", " next to a "))
    return picture, choice(random, PHRASES).format(joint.join(names))


def garment(random: Generator) -> Captioned:
    """A real photograph of a piece of clothing, dyed."""
    images, labels = sources.fashion()
    number = int(random.integers(len(images)))
    cloth = Image.fromarray(images[number]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    weave = np.asarray(cloth, np.float64)[..., None] / 255
    ground, dye = random.uniform(0, 255, 3), random.uniform(0, 255, 3)
    picture = weather((ground + (dye - ground) * weave).astype(np.uint8), random, 0.6, (0.7, 1.15), 7)
    return picture, choice(random, PHRASES).format(choice(random, GARMENTS[labels[number]]))


WEB: tuple[tuple[float, Callable[[Generator], Captioned]], ...] = (
    (0.11, drawn(scenes.TASK, scenes.draw)),
    (0.11, drawn(vehicles.TASK, vehicles.draw)),
    (0.10, drawn(aerial.TASK, aerial.draw)),
    (0.04, drawn(landcover.TASK, landcover.draw)),
    (0.13, drawn(housenumbers.TASK, housenumbers.draw)),
    (0.06, drawn(signs.TASK, signs.draw)),
    (0.08, drawn(digits.TASK, handwriting)),
    (0.11, drawn(textures.TASK, textures.draw)),
    (0.12, thing),
    (0.06, garment),
    (0.05, figure),
    (0.03, letter),
)
"""What the web holds: shares, and who makes it."""


def pretraining(count: int, stream: int, workers: int) -> tuple[np.ndarray, list[str]]:
    """`count` captioned pictures, the same for the same `stream`: pictures (count, 32, 32, 3) uint8, captions."""
    blocks = [(stream, block) for block in range(-(-count // BLOCK))]
    with ProcessPoolExecutor(workers) as pool:
        made = list(pool.map(draw_block, blocks))
    captions = [text for _, texts in made for text in texts]
    return np.concatenate([pictures for pictures, _ in made])[:count], captions[:count]


def draw_block(which: tuple[int, int]) -> tuple[np.ndarray, list[str]]:
    """One block of a stream."""
    stream, block = which
    random = source("web", f"stream {stream}", block)
    kinds = random.choice(len(WEB), BLOCK, p=[share for share, _ in WEB])
    made = [WEB[kind][1](random) for kind in kinds]
    return np.stack([picture for picture, _ in made]), [text for _, text in made]
