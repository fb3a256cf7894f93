"""Places seen from above while they are being drawn: what tiny-aerial and tiny-landcover share."""

import math

import numpy as np
from numpy.random import Generator
from PIL import Image

from clipfuse.tiny.canvas import SIDE, Colour, Patch, disc, paint, pose, rotation, weather

ROOFS = ((150, 84, 64), (126, 122, 120), (206, 204, 198), (104, 82, 70), (92, 108, 128), (182, 150, 120))
PAINTS = ((226, 226, 226), (40, 42, 46), (150, 152, 156), (150, 44, 42), (48, 70, 120), (196, 190, 176))
SHADES: dict[str, tuple[Colour, ...]] = {
    "grass": ((96, 122, 64), (126, 134, 84), (152, 144, 100), (78, 100, 58), (110, 128, 92), (166, 156, 116)),
    "lawn": ((92, 142, 66), (124, 158, 84), (142, 154, 90), (80, 124, 66)),
    "crop": ((84, 112, 54), (146, 150, 84), (188, 172, 112), (112, 136, 74)),
    "soil": ((150, 122, 92), (172, 146, 112), (122, 102, 82), (166, 128, 102), (188, 172, 146)),
    "tree": ((46, 66, 38), (58, 80, 44), (40, 56, 42), (74, 84, 46), (86, 78, 46)),
    "water": ((38, 68, 92), (56, 94, 108), (30, 46, 56), (80, 98, 84), (34, 90, 116), (94, 104, 100), (60, 76, 54)),
    "shallow": ((98, 138, 138), (76, 140, 150), (116, 128, 106), (72, 112, 118)),
    "sand": ((206, 190, 150), (222, 212, 184), (190, 166, 126), (214, 200, 172)),
    "road": ((124, 122, 120), (94, 94, 98), (154, 150, 144), (74, 76, 80)),
    "concrete": ((172, 168, 160), (146, 142, 138), (192, 186, 172), (158, 148, 132)),
    "gravel": ((132, 120, 108), (112, 104, 98), (150, 136, 120), (96, 86, 80)),
    "white": ((226, 226, 222), (204, 206, 204)),
    "dark": ((34, 38, 38), (46, 46, 44), (52, 56, 50)),
    **{f"roof{k}": ROOFS for k in range(3)},
    **{f"car{k}": PAINTS for k in range(4)},
}
CARS = "car0 car1 car2 car3"
HOUSES, TOWN = "roof0 roof0 roof1 roof2", "soil concrete tree"
Pair = tuple[float, float]
Spot = tuple[float, float] | np.ndarray
Size = float | np.ndarray


def noise(random: Generator, cells: int) -> np.ndarray:
    """Soft spots, (32, 32, 1) floats, about inside [0, 1]; `cells` of them along each side."""
    spots = Image.fromarray(random.random((cells, cells), dtype=np.float32))
    return np.asarray(spots.resize((SIDE, SIDE), Image.Resampling.BICUBIC))[..., None]


def grid(random: Generator, step: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Two turned and slightly bent axes, (64, 64) each, that count steps of some length in `step` (pixels)."""
    at = ((np.arange(2 * SIDE) + 0.5) / 2 - SIDE / 2) / random.uniform(*step)
    across, turn = at[None, :] + random.uniform(-0.05, 0.05) * at[:, None] ** 2 / np.max(at), random.uniform(0, math.pi)
    u, v = (across * math.cos(t) + at[:, None] * math.sin(t) for t in (turn, turn + math.pi / 2))
    return u + random.random(), v + random.random()


def half(picture: np.ndarray) -> np.ndarray:
    """From 64 to 32 pixels a side, by averages: (32, 32, channels)."""
    return picture.reshape(SIDE, 2, SIDE, 2, -1).mean(axis=(1, 3))


def normals(line: np.ndarray) -> np.ndarray:
    """Unit vectors (n, 2) at right angles to a line (n, 2)."""
    along = np.concatenate([line[1:], line[-1:]]) - np.concatenate([line[:1], line[:-1]])
    return along[:, ::-1] * (-1, 1) / np.hypot(along[:, 0], along[:, 1])[:, None]


def fields(random: Generator, shades: np.ndarray, size: Pair, furrows: float = 0.06) -> np.ndarray:
    """Patchwork (32, 32, channels) of the shades (n, channels); `furrows` is how deep each field may be ploughed."""
    u, v = grid(random, size)
    row = np.floor(v * random.uniform(0.8, 2.2)).astype(int)
    field = (row * 7 + np.floor(u + random.random(16)[row % 16]).astype(int)) % len(shades)
    along = np.where((random.random(len(shades)) < 0.5)[field], u, v) * random.uniform(18, 40)
    return half(shades[field] * (1 + random.uniform(0, furrows) * np.sin(along))[..., None])


class Site:
    """A place from above while it is being drawn: its colours, its ground (32, 32, 3) and what stands on it, in order.

    Shapes are in the unit coordinates of `canvas`; what has no width is left out. Names of colours are those of
    `SHADES`; `names` are several with spaces between, one of which is drawn each time.
    """

    def __init__(self, random: Generator):
        self.random, self.real = random, random.uniform
        cast, haze = random.uniform(0.92, 1.08, 3), random.uniform(0, 0.25)
        draws = zip(SHADES.values(), random.random(len(SHADES)), strict=True)
        chosen = [options[int(draw * len(options))] for options, draw in draws]
        values = (np.array(chosen) * (1 - haze) + 150 * haze) * cast + random.normal(0, 6, (len(SHADES), 3))
        self.colours = dict(zip(SHADES, map(tuple, np.clip(values, 0, 255).astype(int).tolist()), strict=True))
        self.ground, self.things = np.zeros((SIDE, SIDE, 3)), list[Patch]()

    def maybe(self, share: float) -> bool:
        return bool(self.random.random() < share)

    def count(self, least: int, most: int) -> int:
        return least + int(self.random.random() * (most + 1 - least))

    def pick(self, names: str) -> str:
        return (options := names.split())[int(self.random.random() * len(options))]

    def mottle(self, *names: str, rough: float = 0.12) -> None:
        """Ground in soft spots; `rough` is how much single pixels differ."""
        self.ground = np.full((SIDE, SIDE, 3), self.colours[names[0]], float)
        for name in names[1:]:
            share = np.clip(noise(self.random, self.count(2, 7)) * 2 - self.real(0.4, 1.4), 0, 1)
            self.ground += (np.array(self.colours[name]) - self.ground) * share
        self.ground *= 0.85 + rough * (self.random.random((SIDE, SIDE, 1)) - 0.5) + 0.3 * noise(self.random, 4)

    def farm(self, names: str, size: Pair = (8, 20), furrows: float = 0.06, spread: float = 12) -> None:
        """Ground of fields; the colours of two with one name differ by about `spread`."""
        shades = np.array([self.colours[self.pick(names)] for _ in range(24)]) + self.random.normal(0, spread, (24, 1))
        shades = shades + self.random.normal(0, spread / 2, (24, 3))
        self.ground = fields(self.random, shades, size, furrows) * (0.85 + 0.3 * noise(self.random, 4))

    def country(self) -> None:
        """Ground of any open country, for what runs through it."""
        if self.maybe(0.5):
            return self.farm("crop crop soil grass lawn")
        return self.mottle(*(("grass", "soil", "tree") if self.maybe(0.6) else ("tree", "grass")))

    def boxes(self, names: str, centres: Spot, length: Size, width: Size, turn: Size = 0.0) -> None:
        """Boxes around `centres` (n, 2) or (2); each may have its own length, width and turn."""
        centres, options = np.atleast_2d(centres), names.split()
        length, width, turn = (np.broadcast_to(value, len(centres))[:, None] for value in (length, width, turn))
        along = np.concatenate([np.cos(turn), np.sin(turn)], axis=1)
        side, along = along[:, ::-1] * (-1, 1) * width / 2, along * length / 2
        corners = centres[:, None] + np.stack([along + side, along - side, -along - side, side - along], axis=1)
        chosen = self.random.integers(0, len(options), len(centres) if np.any(width) else 0)
        self.things += [Patch(options[i], shape) for i, shape in zip(chosen, corners, strict=False)]

    def disc(self, name: str, radius: float, centre: Spot = (0, 0)) -> None:
        self.things.append(disc(name, radius, (centre[0], centre[1])))

    def dots(self, name: str, most: int, size: Pair, near: float = 0.0, far: float = 1.9) -> None:
        """Up to `most` small round things, such as trees, `near` to `far` from the centre."""
        count, angle = self.count(most // 4, most), np.arange(6) * (math.tau / 6)
        turn, away = self.real(0, math.tau, (count, 1)), self.real(near, far, (count, 1))
        centres = np.concatenate([np.cos(turn), np.sin(turn)], axis=1) * away
        hexagon = np.stack([np.cos(angle), np.sin(angle)], axis=1)
        self.things += [Patch(name, c) for c in centres[:, None] + hexagon * self.real(*size, (count, 1, 1))]

    def blob(self, name: str, size: float, centre: Spot = (0, 0), rough: float = 0.4, flat: float = 0.7) -> np.ndarray:
        """Something round that nobody planned, `flat` times as tall as wide before it is turned; its edge (20, 2)."""
        angle, wave = np.arange(20) * (math.tau / 20), np.ones(20)
        for k in (1, 2, 3):
            wave += self.real(-rough, rough) / k * np.cos((k + 1) * angle + self.real(0, 6))
        edge = np.stack([np.cos(angle), flat * np.sin(angle)], axis=1) * (size * wave)[:, None]
        self.things.append(Patch(name, edge @ rotation(self.real(0, math.tau)).T + np.array(centre)))
        return self.things[-1].corners

    def curve(self, bend: float, offset: float = 0.0, turn: float = 0.0) -> np.ndarray:
        """Line (16, 2) across the picture, by default from left to right; `bend` is how far it may wander."""
        x = np.linspace(-3, 3, 16)
        y = bend * np.sin(x * self.real(0.5, 1.4) + self.real(0, 6)) + bend * self.real(-0.3, 0.3) * x + offset
        return np.stack([x, y], axis=1) @ rotation(turn).T

    def ribbon(self, line: np.ndarray, shift: float = 0.0, **widths: Size) -> None:
        """Strokes along a line (n, 2), moved sideways by `shift`: one after the other, each a colour and its width."""
        side = normals(line)
        for name, width in widths.items():
            reach = np.broadcast_to(width, len(line))[:, None] / 2
            edge = [line + side * (shift + reach), (line + side * (shift - reach))[::-1]]
            self.things += [Patch(name, np.vstack(edge))] if reach.any() else []

    def houses(self, centres: np.ndarray, size: Pair, names: str = HOUSES, askew: float = 0.1) -> None:
        """Roofs with shadows around `centres` (n, 2), each `size` long or wide."""
        (length, width), turn = self.real(*size, (2, len(centres))), self.random.normal(0, askew, len(centres))
        self.boxes("dark", centres + self.real(-0.09, 0.09, 2), length, width, turn)
        self.boxes(names, centres, length, width, turn)

    def lattice(self, columns: int, rows: int, step: Spot, jitter: float, full: float = 1) -> np.ndarray:
        """Centres (n, 2) of a grid around the origin, each off by up to `jitter`; about a share `full` of them."""
        at = np.stack([np.arange(columns * rows) % columns, np.arange(columns * rows) // columns], axis=1)
        at = (at - np.array([columns - 1, rows - 1]) / 2) * step + self.real(-jitter, jitter, at.shape)
        return at[self.random.random(len(at)) < full]

    def picture(self) -> np.ndarray:
        """The site, turned anyhow, in some weather: (32, 32, 3) uint8."""
        place = pose(self.random, (11, 17), turn=math.pi, shear=0.1, shift=4.0)
        sharp = paint(self.things, self.colours, place, np.clip(self.ground, 0, 255).astype(np.uint8))
        return weather(sharp, self.random, blur=1.1, light=(0.65, 1.25), grain=10)


def circle(corners: int, least: float = 0.0, most: float = math.tau) -> np.ndarray:
    """Points (corners, 2) on the unit circle between two angles."""
    angle = np.linspace(least, most, corners)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def lane(line: np.ndarray, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Points (n, 2) beside a line (n, 2), and its direction there (n)."""
    side = normals(line)
    return line + side * shift, np.arctan2(-side[:, 0], side[:, 1])


def traffic(s: Site, line: np.ndarray, shift: float, most: int, size: float = 0.09) -> None:
    """Up to `most` cars on a lane."""
    (points, turn), here = lane(line, shift), s.random.permutation(np.arange(3, 13))[: s.count(0, most)]
    s.boxes(CARS, points[here] + s.real(-0.1, 0.1), size * s.real(1.4, 3, len(here)), size, turn[here])


def town(s: Site, near: float, most: int) -> None:
    """Up to `most` houses and some trees at least `near` from the centre."""
    spots = s.random.permutation(circle(40))[: s.count(0, most)]
    s.houses(spots * s.real(near, near + 0.8, (len(spots), 1)), (0.16, 0.42), askew=0.4)
    s.dots("tree", most + 4, (0.06, 0.19), near, near + 0.9)


def overpass(s: Site) -> None:
    """A road on top of everything, from about top to bottom, in one of three pictures."""
    if s.maybe(0.33):
        s.ribbon(over := s.curve(0.15, turn=s.real(1.0, 2.1)), 0.1, dark=0.28)
        s.ribbon(over, **{s.pick("road concrete"): 0.26})
        traffic(s, over, 0.06, 3)
