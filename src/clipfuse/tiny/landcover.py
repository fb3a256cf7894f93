"""tiny-landcover: ten kinds of land as a satellite sees them, coarse."""

import math

import numpy as np
from numpy.random import Generator

from clipfuse.tiny.site import HOUSES, TOWN, Site, fields, grid, half, noise
from clipfuse.tiny.task import TinyTask, drawings

NAME = "tiny-landcover"


def annual_crop(s: Site) -> None:
    s.farm("crop crop soil grass lawn", furrows=0.16, spread=15)
    s.ribbon(s.curve(0.05), sand=0.06 * s.maybe(0.3))
    s.dots("tree", 5, (0.05, 0.15))


def forest(s: Site) -> None:
    s.mottle("tree", s.pick("tree grass dark"), rough=0.4)
    s.ground = s.ground * 0.4 + np.array(s.colours["tree"]) * 0.6 * (0.8 + 0.5 * noise(s.random, s.count(9, 20)))
    s.dots("dark", 30, (0.03, 0.1))
    s.dots("grass", s.count(0, 3) // 2, (0.1, 0.4))
    s.ribbon(s.curve(0.4), **{s.pick("soil road grass"): 0.05 * s.maybe(0.3)})


def herbaceous_vegetation(s: Site) -> None:
    s.mottle("grass", "soil", "tree", "crop", rough=0.25)
    s.dots("tree", 40, (0.03, 0.11))
    for at in s.real(-1.3, 1.3, (s.count(0, 4), 2)):
        s.blob("tree", s.real(0.1, 0.4), at)
    s.ribbon(s.curve(0.5), sand=0.05 * s.maybe(0.3))


def highway(s: Site) -> None:
    s.country()
    line, wide, surface, ring = (
        s.curve(s.real(0, 0.4)),
        s.real(0.1, 0.22),
        s.pick("road concrete"),
        np.linspace(0, 5, 16),
    )
    s.dots("tree", 14, (0.05, 0.14))
    s.houses(s.real(-1.5, 1.5, (s.count(0, 6), 2)), (0.1, 0.25), askew=1)
    if s.maybe(0.45):
        s.ribbon(s.curve(0.2, turn=s.real(0.7, 2.4)), **{surface: wide * 0.7})
        loop = np.stack([np.cos(ring), np.sin(ring)], axis=1) * s.real(0.2, 0.4) + line[8]
        s.ribbon(loop + np.array([0.2, 0.35]), **{surface: 0.07 * s.maybe(0.5)})
    s.ribbon(line, tree=wide * 3 * s.maybe(0.3), **{surface: wide})
    s.ribbon(line, **{s.pick("grass white dark"): 0.03 * (wide > 0.14)})


def industrial(s: Site) -> None:
    s.mottle("concrete", s.pick("grass soil gravel"))
    for y in (-0.9, 0.1, 1.1):
        s.ribbon(s.curve(0.03, y), road=0.13)
    s.boxes("road", (s.real(-1, 1), 0), 0.13, 6)
    spots = s.lattice(4, 4, (0.75, 0.6), 0.15, s.real(0.55, 0.95))
    s.houses(spots, (0.2, 0.8), "roof0 roof1 roof2 white concrete", askew=0.03)
    s.dots("tree", 10, (0.04, 0.12))


def pasture(s: Site) -> None:
    s.farm(f"{s.pick('lawn lawn grass crop')} {s.pick('lawn grass')}", size=(14, 36), furrows=0, spread=5)
    s.dots("tree", 10, (0.04, 0.1))
    for _ in range(s.count(1, 3)):
        hedge = s.curve(0.15, s.real(-1, 1), s.real(0, math.pi))[s.count(1, 6) : s.count(9, 15)]
        s.ribbon(hedge, tree=s.real(0.04, 0.1, len(hedge)))
    s.dots("water", s.maybe(0.2), (0.06, 0.12))


def permanent_crop(s: Site) -> None:
    s.farm("soil grass soil sand", size=(12, 30), furrows=0, spread=8)
    u, v = grid(s.random, (2.5, 4.4))
    rows = np.sin(math.tau * u) + (np.sin(math.tau * v) * s.real(0.5, 1) if s.maybe(0.5) else 0.3)
    block = fields(s.random, np.array([[1.0]] * 5 + [[0.0]]), (9, 24), 0)
    planted = half((rows > s.real(0.1, 0.6)).astype(float)) * block * s.real(0.4, 1)
    s.ground += (np.array(s.colours["tree"]) - s.ground) * planted
    s.ribbon(s.curve(0.1), sand=0.06 * s.maybe(0.4))
    s.houses(s.real(-1, 1, (s.count(0, 2), 2)), (0.1, 0.2))


def residential(s: Site) -> None:
    s.mottle("grass", s.pick(TOWN), "concrete")
    step = s.real(0.21, 0.28)
    for y in np.arange(-1.5, 1.6, step * 2.6):
        s.ribbon(s.curve(0.06, y), road=0.07)
    s.boxes("road", s.real(-1.2, 1.2, (2, 2)) * (1, 0), 0.07, 6)
    s.houses(s.lattice(7, 7, (step * 1.3, step * 1.3), 0.05, s.real(0.4, 0.7)), (0.09, 0.18), askew=0.2)
    s.dots("tree", 20, (0.04, 0.12))


def river(s: Site) -> None:
    s.country()
    line, wide, bank = s.curve(s.real(0.2, 0.7)), s.real(0.16, 0.7), s.pick("sand tree grass")
    swell = wide * (1 + 0.25 * np.sin(np.linspace(0, s.real(5, 12), 16)))
    s.ribbon(line, s.real(-0.1, 0.1), **{bank: swell * s.real(1.1, 1.6)})
    s.ribbon(line, water=swell)
    s.dots(bank, s.maybe(0.3), (wide * 0.15, wide * 0.3), 0, 0.5)
    s.boxes("concrete", (0, 0), 0.07, 6 * s.maybe(0.25), s.real(-0.4, 0.4))
    s.dots("tree", 12, (0.05, 0.13), 0.6)


def sea_or_lake(s: Site) -> None:
    s.mottle("water", s.pick("water shallow"), rough=s.real(0, 0.15))
    s.ground *= 1 + half(np.sin(math.tau * grid(s.random, (2, 5))[0])) * s.real(0, 0.05)
    if s.maybe(0.6):
        shore = s.curve(0.3, s.real(1.2, 2.2))
        s.ribbon(shore, sand=1.6)
        s.ribbon(shore, 0.1, **{s.pick("grass tree concrete crop"): 1.5})
        s.boxes("tree " + HOUSES, shore[4:12] + s.real(-0.4, 0.6, (8, 2)), 0.12, 0.12)
    s.boxes("white grass", s.real(-0.8, 0.8, (2, 2)), 0.14, 0.06 * s.maybe(0.3), s.real(0, 3))


SCENES = (annual_crop, forest, herbaceous_vegetation, highway, industrial)
SCENES += (pasture, permanent_crop, residential, river, sea_or_lake)
CLASSES = tuple(scene.__name__.replace("_", " ") for scene in SCENES)


def draw(label: int, random: Generator) -> np.ndarray:
    """A picture of the class, (32, 32, 3) uint8."""
    SCENES[label](site := Site(random))
    return site.picture()


TASK = TinyTask(
    name=NAME,
    classes=CLASSES,
    templates=("a centered satellite photo of {c}.",),
    examples=drawings(NAME, len(CLASSES), draw),
)
