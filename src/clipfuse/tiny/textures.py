"""tiny-textures: sixteen kinds of surface in any two or three colours, at any angle and scale.

Each turns warped coordinates, in pixels, into the shares (0 to 1) of the second colour (`ink`) and of a third over it.
"""

import math

import numpy as np
from numpy.random import Generator
from PIL import Image

from clipfuse.tiny.canvas import SIDE, rotation, weather
from clipfuse.tiny.task import TinyTask, drawings

NAME = "tiny-textures"
WIDE = 2 * SIDE
X, Y = (np.ascontiguousarray(axis) for axis in np.meshgrid(*[(np.arange(WIDE) + 0.5) / 2 - SIDE / 2] * 2))
Maps = tuple[np.ndarray, np.ndarray]


def noise(random: Generator, cells: int) -> np.ndarray:
    """Soft hills, (WIDE, WIDE), about within [-1, 1]; `cells` of them along each side."""
    hills = Image.fromarray(random.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(hills.resize((WIDE, WIDE), Image.Resampling.BICUBIC), np.float64)


def warped(random: Generator) -> Maps:
    """Coordinates of every point: turned, shifted, slightly stretched and bent."""
    (a, b), (c, d) = rotation(random.uniform(0, 2 * math.pi)) * random.uniform(0.93, 1.07, (2, 1))
    (left, up), bend, cells = random.uniform(-16, 16, 2), random.uniform(0, 1.6), int(random.integers(2, 5))
    x, y = X + bend * noise(random, cells), Y + bend * noise(random, cells)
    return a * x + b * y + left, c * x + d * y + up


def stroke(distance: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    """1 within `width` / 2 of a line or of a centre, 0 outside, a soft edge between."""
    return np.clip((width / 2 - np.abs(distance)) * 1.6 + 0.5, 0, 1)


def nearest(u: np.ndarray, period: float) -> Maps:
    """Signed distance to the nearest multiple of `period`, and which one it is."""
    index = np.rint(u / period)
    return u - index * period, index.astype(np.int64)


def chosen(random: Generator, row: np.ndarray, column: np.ndarray | int = 0) -> np.ndarray:
    """0 or 1, drawn by lot for each cell (row, column) of a lattice."""
    return (random.random((16, 16)) < random.uniform(0.25, 0.5))[row % 16, column % 16] * 1.0


def scattered(random: Generator, period: float) -> np.ndarray:
    """Points (n, 2) that cover the picture and its rim, about `period` apart, in random order."""
    steps = np.arange(-SIDE / 2 - 0.8 * period, SIDE / 2 + 0.8 * period, period) + random.uniform(0, 0.6 * period)
    points = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    return random.permutation(points + random.uniform(-0.45, 0.45, points.shape) * period)


def neighbours(x: np.ndarray, y: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which of the points is nearest, and the distances to it and to the second nearest."""
    owner, first, second = np.zeros(x.shape, np.int64), *np.full((2, *x.shape), 1e4, x.dtype)
    for index, (a, b) in enumerate(points.tolist()):
        away = (x - a) ** 2 + (y - b) ** 2
        np.copyto(owner, index, where=away < first)
        first, second = np.minimum(first, away), np.minimum(second, np.maximum(first, away))
    return owner, np.sqrt(first), np.sqrt(second)


def lines(u: np.ndarray, random: Generator, period: tuple[float, float], share: tuple[float, float]) -> Maps:
    """Parallel lines; their width is a `share` of the period."""
    step = random.uniform(*period)
    distance, index = nearest(u, step)
    ink = stroke(distance, max(1.0, step * random.uniform(*share)))
    return ink, ink * chosen(random, index)


def banded(u: np.ndarray, v: np.ndarray, random: Generator) -> Maps:
    widths = random.uniform(*((2.0, 5.5), (2.5, 9.0), (4.0, 11.0))[random.integers(3)], 40)
    index = np.searchsorted(np.cumsum(widths) - widths.sum() / 2, u)
    return index % 2 * 1.0, chosen(random, index)


def blotchy(u: np.ndarray, v: np.ndarray, random: Generator) -> Maps:
    cells, sharp, level = int(random.integers(4, 8)), random.uniform(2, 7), random.uniform(-0.05, 0.25)
    hills = noise(random, cells) + random.uniform(0.2, 0.5) * noise(random, 2 * cells) - level
    return np.clip(hills * sharp + 0.5, 0, 1), np.clip((noise(random, cells) - 0.3) * sharp + 0.5, 0, 1)


def bubbly(u: np.ndarray, v: np.ndarray, random: Generator) -> Maps:
    points = scattered(random, period := random.uniform(7, 11))
    radii, owner = period * random.uniform(0.25, 0.8, len(points)), np.full(X.shape, -1)
    for index, (a, b) in enumerate(points):
        np.copyto(owner, index, where=(X[:1] - a) ** 2 + (Y[:, :1] - b) ** 2 < radii[index] ** 2)
    radius, (x, y), inside = radii[owner], (X - points[owner, 0], Y - points[owner, 1]), owner >= 0
    right, below = random.uniform(0.3, 0.5, 2) * random.choice([-1, 1], 2)
    shine = stroke(np.hypot(x - right * radius, y - below * radius), 0.55 * radius) * inside
    ring = np.maximum(stroke(np.hypot(x, y) - radius, random.uniform(2, 3)), random.uniform(0, 0.35))
    return np.maximum(ring * inside, shine), shine


def chequered(u: np.ndarray, v: np.ndarray, random: Generator) -> Maps:
    period = random.uniform(3.2, 9)
    row, column = nearest(u, period)[1], nearest(v, period)[1]
    return (ink := (row + column) % 2 * 1.0), ink * chosen(random, row, column)


def cracked(u: np.ndarray, v: np.ndarray, random: Generator) -> Maps:
    points, ragged = scattered(random, random.uniform(8, 13)), random.uniform(0.4, 1.2)
    x, y = ((axis + ragged * noise(random, 12)).astype(np.float32) for axis in (X, Y))
    owner, first, second = neighbours(x, y, points)
    ink = stroke((second - first) / 2, random.uniform(0.8, 1.4) * (1 + noise(random, 5)))
    return ink, (1 - ink) * chosen(random, owner)


def crosshatched(u: np.ndarray, v: np.ndarray, random: Generator) -> Maps:
    (one, _), angle = lines(u, random, (3.2, 6), (0.2, 0.35)), random.uniform(0.6, 1.05)
    two, third = lines(math.cos(angle) * u + math.sin(angle) * v, random, (3.2, 6), (0.2, 0.35))
    return np.maximum(one, two), (two, third)[random.integers(2)]


def dotted(u: np.ndarray, v: np.ndarray, random: Generator) -> Maps:
    period, stagger = random.uniform(4.2, 9), random.choice([0, 0.5])
    y, row = nearest(v, period * (1 - 0.268 * stagger))
    x, column = nearest(u + row * stagger * period, period)
    ink = stroke(np.hypot(x, y), period * random.uniform(0.4, 0.65))
    return ink, ink * chosen(random, row, column)


def fibrous(u: np.ndarray, v: np.ndarray, random: Generator) -> Maps:
    fine, length, spread = random.uniform((0.9, 12, 0.1), (1.8, 25, 0.4))
    u, hairs = u + random.uniform(1, 3.5) * noise(random, 3), []
    for slant in (-spread, spread):
        (_, row), (t, column) = nearest(u + slant * v, fine), nearest(v, length)
        table, t = random.uniform(-1, 1, (64, 64)), t / length + 0.5
        hairs.append((1 - t) * table[row % 64, column % 64] + t * table[row % 64, (column + 1) % 64])
    return np.clip(np.maximum(*hairs) * 1.3, 0, 1), np.clip(hairs[1] * 2 - 0.5, 0, 1)


def grid(u: np.ndarray, v: np.ndarray, random: Generator) -> Maps:
    period = random.uniform(4.5, 10)
    (x, row), (y, column) = nearest(u, period), nearest(v, period)
    ink = stroke(period / 2 - np.maximum(np.abs(x), np.abs(y)), random.uniform(1.0, 0.28 * period))
    return ink, (1 - ink) * chosen(random, row, column)


def honeycombed(u: np.ndarray, v: np.ndarray, random: Generator) -> Maps:
    period, tall, cells = random.uniform(5.5, 11), math.sqrt(3), []
    for half in (0.0, 0.5):
        (x, column), (y, row) = nearest(u - half * period, period), nearest(v - half * period * tall, period * tall)
        cells.append((np.maximum(np.abs(x), np.abs(x) / 2 + np.abs(y) * tall / 2), chosen(random, row, column)))
    (one, lots), (two, others) = cells
    ink = stroke(period / 2 - np.minimum(one, two), random.uniform(1.1, 0.24 * period))
    return ink, (1 - ink) * np.where(one < two, lots, others)


def marbled(u: np.ndarray, v: np.ndarray, random: Generator) -> Maps:
    swirl = random.uniform(4, 8) * noise(random, 4) + random.uniform(1, 2) * noise(random, 9)
    phase = (u + swirl) * (math.pi / random.uniform(7, 14))
    haze, other = 0.35 * np.sin(2 * phase + 2 * noise(random, 5)).clip(0), np.abs(np.sin(phase * 0.7 + 1))
    return (haze + (1 - np.abs(np.sin(phase))) ** random.uniform(1.2, 3)).clip(0, 1), (1 - 2.5 * other).clip(0)


def scaly(u: np.ndarray, v: np.ndarray, random: Generator) -> Maps:
    period, rise, rim, fade = random.uniform((6.5, 0.44, 1.0, 0), (11.5, 0.54, 1.5, 0.7))
    base, radius, ink, third = np.floor(v / (rise * period)).astype(np.int64), 0.58 * period, 0, 0
    for row in (base + 1, base, base - 1):
        x, column = nearest(u + row % 2 * period / 2, period)
        away = np.hypot(x, v - row * rise * period)
        ink = np.where(away < radius, np.maximum(stroke(away - radius, 2 * rim), fade * (1 - away / radius)), ink)
        third = np.where(away < radius, (row * 5 + column * 3) % 7 < 3, third)
    return ink, third * (1 - ink)


def spiralled(u: np.ndarray, v: np.ndarray, random: Generator) -> Maps:
    turn = random.uniform(0, 2 * math.pi) + np.arange(random.integers(1, 4)) * 2.1
    wide, spread = random.uniform(*(((4.2, 0), (7.5, 9)) if len(turn) == 1 else ((3.6, 7), (5, 10))))
    points = np.stack([np.cos(turn), np.sin(turn)], axis=1) * spread
    x, y = X + 0.7 * noise(random, 4), Y + 0.7 * noise(random, 4)
    owner, away, _ = neighbours(x, y, points)
    angle = np.arctan2(y - points[owner, 1], x - points[owner, 0]) / (2 * math.pi)
    coil = away + wide * (turn[owner] + angle * random.choice([-2, -1, 1, 2] if len(turn) == 1 else [-1, 1]))
    ink = stroke(nearest(coil, wide)[0], random.uniform(0.3, 0.55) * wide)
    return ink, ink * (owner == 0 if len(turn) > 1 else away < random.uniform(5, 9))


def woven(u: np.ndarray, v: np.ndarray, random: Generator) -> Maps:
    period = random.uniform(6, 10) if (threads := random.integers(1, 4)) == 1 else random.uniform(2.7, 4) * threads
    (x, row), (y, column) = nearest(u, period), nearest(v, period)
    over, inside = (row + column) % 2 == 0, period * (random.uniform(0.34, 0.43) if threads == 1 else 0.5)
    upright = np.where(over, np.abs(x) < inside, np.abs(y) >= inside)
    side, along = np.where(upright, x, y), np.where(upright, y, x)
    ridge = nearest(side + (threads - 1) * inside / threads, 2 * inside / threads)[0]
    body = np.clip((inside / threads - np.abs(ridge)) * 1.1, 0, 1) * (np.abs(side) < inside)
    hollow = np.where(upright == over, 0, random.uniform(0.2, 0.6)) if threads == 1 else (along / period) ** 2
    return body * (1 - hollow) * np.where(upright, 1, random.uniform(0.6, 1)), body * upright


def zigzagged(u: np.ndarray, v: np.ndarray, random: Generator) -> Maps:
    tooth = np.abs(nearest(v, random.uniform(7, 13))[0]) * random.uniform(0.8, 1.5)
    return lines(u + tooth, random, (4, 8.5), (0.3, 0.55))


def lined(u: np.ndarray, v: np.ndarray, random: Generator) -> Maps:
    return lines(u, random, (3, 6.5), (0.18, 0.36))


TEXTURES = (banded, blotchy, bubbly, chequered, cracked, crosshatched, dotted, fibrous)
TEXTURES += (grid, honeycombed, marbled, scaly, spiralled, woven, zigzagged, lined)
CLASSES: tuple[str, ...] = tuple(texture.__name__ for texture in TEXTURES)


def draw(label: int, random: Generator) -> np.ndarray:
    """One picture of the class with this label: (32, 32, 3) uint8."""
    ink, third = TEXTURES[label](*warped(random), random)
    tries = random.uniform(5, 250, (40, 3, 3))  # three colours, no two of them too near each other
    ground, second, other = tries[np.argmax(np.linalg.norm(tries - np.roll(tries, 1, 1), axis=2).min(1) > 75)]
    picture = ground + ink[..., None] * (second - ground)
    picture += third[..., None] * (other - picture) * (random.random() < 0.35)
    across, down = rotation(random.uniform(0, 2 * math.pi))[0] * random.uniform(0, 0.4) / SIDE
    picture = picture * (1 + across * X + down * Y)[..., None] + noise(random, 4)[..., None] * random.uniform(0, 20)
    picture = picture.reshape(SIDE, 2, SIDE, 2, 3).mean((1, 3)).clip(0, 255).astype(np.uint8)
    return weather(picture, random, blur=1.0, light=(0.7, 1.2), grain=14)


TASK = TinyTask(
    name=NAME,
    classes=CLASSES,
    templates=("a photo of a {c} texture.", "a {c} pattern."),
    examples=drawings(NAME, len(CLASSES), draw),
)
