"""tiny-aerial: fourteen kinds of places seen from above, fairly close, from any side and in any season."""

import math

import numpy as np
from numpy.random import Generator

from clipfuse.tiny.canvas import Patch, rotation
from clipfuse.tiny.site import CARS, HOUSES, TOWN, Site, circle, lane, overpass, town, traffic
from clipfuse.tiny.task import TinyTask, drawings

NAME = "tiny-aerial"


def airport(s: Site) -> None:
    s.mottle("grass", "soil")
    surface, wide, y, middle = s.pick("road concrete"), s.real(0.2, 0.32), s.real(-0.6, 0.2), s.real(-0.6, 0.6)
    runways = [np.array([(-s.real(0.9, 2.4), y), (s.real(0.9, 2.4), y)])]
    runways += [circle(2, 0, math.pi) * s.real(1.1, 2.3) @ rotation(s.real(0.5, 2.6)).T] * s.maybe(0.6)
    for x, dx, dy in ((-2.2, 4.4, 0), *((x, s.real(-0.3, 0.3), -0.45) for x in s.real(-1.2, 1.2, 3))):
        s.ribbon(np.array([(x, y + 0.45), (x + dx, y + 0.45 + dy)]), **{surface: 0.11})
    for line in runways:
        long, turn = float(np.hypot(*(line[1] - line[0]))), lane(line)[1]
        at = line[0] + (line[1] - line[0]) * np.arange(0.4, long - 0.3, 0.32)[:, None] / long
        s.ribbon(line, **{surface: wide})
        s.boxes("white", at, 0.14, 0.045, turn[0])
        s.boxes("white", line + (line[::-1] - line) * 0.13 / long, 0.13, wide * 0.75, turn)
    if s.maybe(0.8):
        planes = s.lattice(4, 1, (s.real(0.38, 0.55), 0), 0.03) + np.array((middle, y + s.real(0.8, 0.95)))
        s.boxes("concrete", (middle, y + 0.95), s.real(1, 2.4), 0.7)
        s.houses(s.lattice(2, 1, (0.8, 0), 0) + np.array((middle, y + 1.35)), (0.25, 0.8), askew=0.03)
        s.boxes("white", planes, 0.09, 0.42)
        s.boxes("white", planes - (0, 0.03), 0.36, 0.09)


def baseball_diamond(s: Site) -> None:
    s.mottle("grass", s.pick("lawn soil concrete"))
    reach, arc = s.real(0.9, 1.15), circle(12, -(wide := s.real(0.78, 0.88)), wide)
    shapes = [(s.pick("soil lawn"), np.vstack([arc * 1.75, (-0.16, 0)])), ("lawn", np.vstack([arc * 1.6, (0, 0)]))]
    shapes += [("soil", np.vstack([arc * reach, (-0.1, 0)])), ("soil", circle(9) * 0.16 + (0.04, 0))]
    shapes += [("lawn", circle(5) * 0.34 + (0.48, 0)), ("soil", circle(9) * 0.07 + (0.46, 0))]
    shapes += [("white", np.array([(0.05, d * 0.02), (1.15, d * 1.1), (1.15, d * 1.16)])) for d in (-1, 1)]
    places = [(0.7, s.real(0.5, 0.62), k * math.tau / 4 + s.real(-0.2, 0.2)) for k in range(s.count(2, 4))]
    town(s, 1.3, 6)
    for away, size, turn in places if s.maybe(0.25) else [(s.real(-0.2, 0.2), s.real(0.7, 1.3), 0)]:
        s.things += [Patch(name, ((c - (0.6, 0)) * size + (away, 0)) @ rotation(turn).T) for name, c in shapes]
    s.dots("tree", 14, (0.08, 0.2), 1.2)


def bridge(s: Site) -> None:
    s.mottle("grass", s.pick(TOWN))
    wide, deck, surface = s.real(0.8, 2.2), s.real(0.16, 0.34), s.pick("road concrete")
    town(s, wide * 0.6, 14)
    s.ribbon(s.curve(0.25), sand=wide + s.real(0, 0.2), water=wide)
    road = s.curve(s.real(0, 0.1), s.real(-0.4, 0.4), math.pi / 2 + s.real(-0.4, 0.4))
    inside = np.abs(road[:, 1]) < wide / 2 + 0.25
    for k in range(1 + s.maybe(0.2)):
        line, _ = lane(road, k * deck * 1.7)
        s.ribbon(line[inside] + s.real(-0.25, 0.25, 2), dark=deck)
        s.ribbon(line[inside], white=deck + 0.08)
        s.ribbon(line, **{surface: deck}, white=0.03 * s.maybe(0.5))
        traffic(s, line, deck / 4, 5)


def freeway(s: Site) -> None:
    s.mottle("grass", s.pick(TOWN))
    line, wide, gap = s.curve(s.real(0, 0.3)), s.real(0.28, 0.42), s.real(0.06, 0.24)
    town(s, 0.9, 6)
    for y in s.random.permutation([-0.9, 0.9])[: s.count(0, 2)]:
        s.ribbon(s.curve(1.0, y), road=0.18)
    s.ribbon(line, **{s.pick("concrete grass"): 2 * wide + gap}, white=gap * s.maybe(0.2))
    for middle in ((wide + gap) / 2, -(wide + gap) / 2):
        s.ribbon(line, middle, white=wide + 0.05, road=wide)
        points, turn = lane(line, middle)
        s.boxes("white", points[3:13], 0.16, 0.03, turn[3:13])
        for part in (-0.25, 0.25):
            traffic(s, line, middle + part * wide, 4)
    overpass(s)


def golf_course(s: Site) -> None:
    s.mottle("grass", "tree")
    s.dots("tree", 24, (0.08, 0.24))
    for at in s.real(-1, 1, (int(s.maybe(0.4)), 2)):
        s.blob("water", s.real(0.25, 0.6), at)
    for y in (-0.65, 0.35)[: s.count(1, 2)]:
        line = s.curve(s.real(0.1, 0.5), y, s.real(-0.3, 0.3))[s.count(3, 5) : s.count(10, 12)]
        s.ribbon(line, lawn=(swell := s.real(0.25, 0.5) + 0.1 * np.sin(np.linspace(0, 4, len(line)))))
        s.disc("lawn", swell[0] / 2, line[0])
        s.blob("crop", 0.38, line[-1], 0.2)
        s.blob("lawn", s.real(0.2, 0.3), line[-1], 0.2)
        for at in s.random.normal(line[[-1, -1, -1, -1, 0, 1, 3, 4]], 0.27):
            s.blob("sand", s.real(0.08, 0.2), at, 0.5)


def harbor(s: Site) -> None:
    s.mottle("water", s.pick("water shallow"))
    edge, size, step, reach = s.real(-1.2, -0.6), s.real(0.2, 0.5), s.real(0.14, 0.2), s.real(1.0, 2.6)
    s.boxes("concrete soil road", (0, edge - 1.5), 7, 3)
    s.boxes("grass", (0, edge - 2), 7, s.real(1, 2.6))
    s.houses(s.real((-1.6, edge - 0.6), (1.6, edge - 0.2), (5, 2)), (0.12, 0.45))
    for x in np.arange(-1.6, 1.7, 2 * size + s.real(0.24, 0.4)):
        s.boxes("concrete", (x, edge + reach / 2), 0.07, reach)
        centre = np.array((x, edge + reach / 2))
        spots = centre + s.lattice(2, min(int(reach / step), 8), (size + 0.1, step), 0, s.real(0.5, 1))
        s.boxes("white white car0 car1", spots, size * s.real(0.6, 1, len(spots)), step * 0.6)
    s.ribbon(s.curve(0.1, edge + reach + 0.5)[: s.count(7, 11)], concrete=0.14 * s.maybe(0.3))


def island(s: Site) -> None:
    s.mottle("water", s.pick("water shallow"))
    count, rim, surf = max(1, s.count(-2, 3)), s.real(0.05, 0.3), s.maybe(0.6)
    for centre in s.real(-1, 1, (count, 2)) * (0.25 if count == 1 else 1):
        land = s.blob("shallow", s.real(0.6, 1.1) / count**0.5, centre, s.real(0.2, 0.5), s.real(0.45, 1)) - centre
        s.things.append(Patch("sand", land / (1 + rim * surf * s.real(0.5, 2)) + centre))
        s.things.append(Patch(s.pick("grass tree lawn"), land / (1 + rim * 2) + centre))
        inner = land * s.real(0, 0.65, (20, 1)) + centre
        s.boxes("tree tree grass soil", inner[: s.count(4, 18)], s.real(0.06, 0.25), s.real(0.06, 0.25), s.real(0, 3))
        s.houses(inner[s.count(16, 20) :], (0.08, 0.16), askew=1)
    boats = circle(40)[s.random.integers(0, 40, s.count(0, 4))] * s.real(1.1, 1.6)
    s.boxes("white", boats, 0.16, 0.07, s.real(0, 3))


def parking_lot(s: Site) -> None:
    s.mottle(s.pick("grass soil concrete"), "grass")
    step, long, columns, full = s.real(0.15, 0.22), s.real(0.24, 0.34), s.count(7, 11), s.real(0.45, 1)
    s.boxes("road road concrete", (0, 0), columns * step + s.real(0.3, 3), s.real(2.2, 5))
    for y in np.arange(-1.2, 1.3, 2.1 * long + s.real(0.26, 0.4)):
        spots = s.lattice(columns, 2, (step, long * 1.1), 0.01, full) + np.array((0, y))
        s.boxes(CARS, spots, long * 0.85, step * 0.6, s.random.normal(math.pi / 2, 0.05, len(spots)))
        s.boxes("white", (0, y), columns * step, 0.04 * s.maybe(0.6))
    s.dots("tree", 9, (0.08, 0.17))
    s.houses(s.random.permutation([(0, 1.8), (0, -1.8), (1.8, 0)])[: s.maybe(0.4)], (0.8, 1.8))


def railway(s: Site) -> None:
    s.mottle("grass", s.pick("soil concrete gravel"))
    line, count, step = s.curve(s.real(0, 0.4)), s.count(2, 5), s.real(0.18, 0.27)
    wide, rail, sleepers, busy = count * step + s.real(0, 0.3), s.pick("dark white"), s.maybe(0.4), s.real(0.1, 0.5)
    town(s, wide / 2 + 0.35, 7)
    s.ribbon(line, **{s.pick("gravel gravel soil"): wide})
    for shift in (np.arange(count) - (count - 1) / 2) * step:
        s.ribbon(line, shift, road=step * 0.6 * sleepers)
        s.ribbon(line, shift - 0.2 * step, **{rail: 0.035})
        s.ribbon(line, shift + 0.2 * step, **{rail: 0.035})
        (points, turn), part = lane(line, shift), slice(s.count(2, 7), s.count(9, 14))
        s.boxes(s.pick(f"white {CARS} {HOUSES}"), points[part], 0.36, step * 0.65 * s.maybe(busy), turn[part])
    overpass(s)


def residential_area(s: Site) -> None:
    s.mottle("grass", s.pick(TOWN))
    step, rows, street, full = s.real(0.4, 0.58), s.real(0.42, 0.55), s.real(0.14, 0.24), s.real(0.7, 1)
    for y in (-2 * rows - street, 0, 2 * rows + street):
        s.ribbon(line := s.curve(s.real(0, 0.08), y), road=street)
        traffic(s, line, 0.05, 3, 0.07)
        spots = s.lattice(5, 2, (step, street + rows), 0.06, full) + np.array((s.real(-0.2, 0.2), y))
        s.houses(spots, (0.18, min(step * 0.85, 0.4)), askew=0.08)
    s.boxes("road", (s.real(-0.5, 0.5), 0), street * s.maybe(0.4), 6)
    s.dots("tree", 16, (0.06, 0.18))


def roundabout(s: Site) -> None:
    s.mottle("grass", s.pick(TOWN))
    ring, wide, surface, arms = s.real(0.42, 0.7), s.real(0.18, 0.32), s.pick("road road concrete"), s.count(3, 5)
    town(s, ring + 0.5, 7)
    for k in range(arms):
        arm = s.curve(0.1, turn=k * math.tau / arms + s.real(-0.25, 0.25))[8:]
        s.ribbon(arm, **{surface: wide * s.real(0.8, 1.2)}, white=0.03)
        s.boxes(CARS, arm[s.count(2, 4)], 0.22, 0.1 * s.maybe(0.4), lane(arm)[1][0])
    s.disc("white", ring + wide / 2 + 0.04 * s.maybe(0.4))
    s.disc(surface, ring + wide / 2)
    s.disc(s.pick("grass lawn soil concrete"), ring - wide / 2)
    s.disc(s.pick("tree lawn white soil shallow"), (ring - wide / 2) * s.real(0.2, 0.7))
    traffic(s, circle(16, 0, 6) * ring, 0, 4)
    s.dots("tree", 5, (0.05, 0.14), 0, 0.25)


def storage_tanks(s: Site) -> None:
    s.mottle(s.pick("soil gravel concrete grass"), "grass")
    step, same, size, shadow = s.real(0.65, 0.95), s.maybe(0.6), s.real(0.24, 0.42), s.real(-0.18, 0.18, 2)
    spots = s.lattice(s.count(2, 3), s.count(1, 3), (step, step), s.real(0, 0.12)) + s.real(-0.2, 0.2, 2)
    shell = s.pick("white white roof2 concrete roof1")
    s.boxes("road", s.real(-1.5, 1.5, (s.count(0, 2), 2)) * (0, 1), 6, 0.14)
    s.boxes("concrete", spots, step * 0.92, step * 0.92 * s.maybe(0.4))
    for at in spots[s.count(0, len(spots) // 3) :]:
        radius = min(size if same else s.real(0.16, 0.44), step * 0.46)
        s.disc("dark", radius, at + shadow)
        s.disc(shell, radius, at)
        if s.maybe(0.6):
            s.disc("gravel", radius * 0.85, at)
            s.disc(s.pick("white concrete roof2 gravel " + shell), radius * 0.8, at - shadow * 0.3)
    s.ribbon(spots[[0, -1]], white=0.04 * s.maybe(0.4))
    town(s, 1.2, 8)


def stadium(s: Site) -> None:
    s.mottle(s.pick("concrete grass road"), "grass")
    unit = np.sign(circle(32)) * np.abs(circle(32)) ** s.real(0.5, 1.0)
    size, stand, centre = s.real(0.7, 1.15), s.real(0.16, 0.36), s.real(-0.2, 0.2, 2)
    whole, seats = np.array([size, size * s.real(0.65, 0.95)]), s.pick("white concrete roof0 roof1")
    s.ribbon(s.curve(0.2, 1.4 if s.maybe(0.5) else -1.4), road=0.2 * s.maybe(0.7))
    town(s, 1.25, 10)
    s.things.append(Patch("dark", unit * whole + centre + s.real(-0.18, 0.18, 2)))
    rings = (s.pick("white roof1 roof2"), seats, s.pick("dark car3 " + seats), s.pick("roof0 soil lawn"))
    for name, part in zip(rings, (0, s.real(0.3, 0.6), 0.8, 1), strict=True):
        s.things.append(Patch(name, unit * (whole - stand * size * part) + centre))
    length, height = (whole - stand * size) * 1.46
    s.boxes("white", centre, length, height)
    s.boxes("lawn", centre, length - 0.06, height - 0.06)
    s.boxes("crop", s.lattice(4, 1, (length / 5, 0), 0) + centre, length / 10, height - 0.06)
    s.boxes("white", centre, 0.04, height)


def tennis_court(s: Site) -> None:
    s.mottle("grass", s.pick(TOWN))
    columns, rows = s.count(1, 4), 1 + s.maybe(0.3)
    size, line = (1.3, 0.85, 0.7, 0.6)[max(columns, rows * 2) - 1] * s.real(0.8, 1.1), s.real(0.035, 0.055)
    inner, outer = (s.pick("lawn tree roof0 water"), s.pick("shallow soil roof1 lawn"))
    spots = s.lattice(columns, rows, step := size * np.array([s.real(0.72, 0.85), s.real(1.35, 1.5)]), 0)
    whole, tall, wide = step * (columns, rows), size * 1.1, size * 0.54
    town(s, float(np.hypot(*whole)) / 2 + 0.1, 10)
    s.boxes("dark", (0, 0), *(whole + 0.1))
    s.boxes(outer, (0, 0), *(whole + 0.04))
    s.boxes("white", spots, wide + line, tall + line)
    s.boxes(inner, spots, wide - line, tall - line)
    for d in (-1, 1):
        s.boxes("white", spots + np.array((d * wide * 0.37, 0)), line * (size > 0.75), tall)
        s.boxes("white", spots + np.array((0, d * tall * 0.27)), wide * 0.74, line)
    s.boxes("white", spots, line, tall * 0.54)
    s.boxes("dark", spots, wide + 0.06, line)


SCENES = (airport, baseball_diamond, bridge, freeway, golf_course, harbor, island)
SCENES += (parking_lot, railway, residential_area, roundabout, storage_tanks, stadium, tennis_court)
CLASSES = tuple(scene.__name__.replace("_", " ") for scene in SCENES)


def draw(label: int, random: Generator) -> np.ndarray:
    """A picture of the class, (32, 32, 3) uint8."""
    SCENES[label](site := Site(random))
    return site.picture()


TASK = TinyTask(
    name=NAME,
    classes=CLASSES,
    templates=("satellite imagery of {c}.", "an aerial photo of a {c}."),
    examples=drawings(NAME, len(CLASSES), draw),
)
