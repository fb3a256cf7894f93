"""Digits for the pre-training: drawn with a shaky pen, or set in Pillow's own typeface. Never a scan of the task."""

import math

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFont

from clipfuse.tiny.digits import FULL

Stroke = list[tuple[float, float]]

DOTS = 64
"""Pen and type are drawn on this many dots a side, then counted into 8x8 cells as the scans were."""


def arc(x: float, y: float, wide: float, high: float, start: float, end: float) -> Stroke:
    """Part of an ellipse around (x, y); `start` and `end` in degrees, clockwise from the right."""
    angles = np.radians(np.linspace(start, end, 12))
    return [(x + wide * math.cos(a), y + high * math.sin(a)) for a in angles]


Way = list[Stroke]

SKELETONS: tuple[tuple[Way, ...], ...] = (
    ([arc(0, 0, 0.6, 1, -90, 270)],),
    (
        [[(0, -1), (0, 1)]],
        [[(-0.4, -0.6), (0.1, -1), (0.1, 1)]],
        [[(-0.4, -0.6), (0, -1), (0, 1)], [(-0.5, 1), (0.5, 1)]],
    ),
    (
        [[*arc(0, -0.5, 0.55, 0.5, -160, 30), (-0.6, 1), (0.6, 1)]],
        [[*arc(0, -0.5, 0.5, 0.5, -160, 60), (-0.5, 0.8), (-0.2, 0.7), (0.6, 1)]],
    ),
    ([[*arc(0, -0.5, 0.5, 0.5, -150, 80), *arc(0, 0.5, 0.55, 0.5, -80, 150)]],),
    (
        [[(0.1, -1), (-0.6, 0.3), (0.6, 0.3)], [(0.3, -0.3), (0.2, 1)]],
        [[(-0.5, -1), (-0.5, 0), (0.5, 0)], [(0.5, -1), (0.5, 1)]],
        [[(0.3, 1), (0.3, -1), (-0.6, 0.4), (0.7, 0.4)]],
    ),
    ([[(0.55, -1), (-0.4, -1), (-0.5, -0.15), *arc(0, 0.4, 0.55, 0.6, -110, 140)]],),
    (
        [[(0.3, -1), *arc(0, 0.4, 0.5, 0.6, 200, 560)]],
        [[*arc(0.3, 0, 0.8, 1, 260, 150), *arc(0, 0.45, 0.45, 0.5, 180, 540)]],
    ),
    (
        [[(-0.55, -1), (0.55, -1), (-0.1, 1)]],
        [[(-0.55, -1), (0.55, -1), (0, 1)], [(-0.3, 0), (0.5, 0)]],
    ),
    (
        [arc(0, -0.5, 0.45, 0.48, -90, 270), arc(0, 0.5, 0.55, 0.5, -90, 270)],
        [[(0.4, -0.9), *arc(0, -0.55, 0.42, 0.4, -60, -250), *arc(0, 0.5, 0.5, 0.5, -60, 230), (0.4, -0.9)]],
    ),
    (
        [[*arc(0, -0.45, 0.5, 0.5, 0, -360), (0.5, -0.4), (0.3, 1)]],
        [[*arc(0, -0.5, 0.45, 0.45, 20, -340), *arc(-0.1, 0.4, 0.6, 0.6, -20, 120)]],
    ),
)
"""For each digit, the ways to write it: lists of strokes in unit coordinates, y down."""


def handwritten(digit: int, random: Generator) -> np.ndarray:
    """One digit in an invented hand, as a scan would have it: (8, 8) in 0..16."""
    ways = SKELETONS[digit]
    slant, lean = random.uniform(-0.1, 0.45), random.normal(0, 0.12)
    bend, phase = random.normal(0, 0.12, 2), random.uniform(0, 2 * math.pi, 2)
    sheet = Image.new("L", (3 * DOTS, 3 * DOTS))
    pen = ImageDraw.Draw(sheet)
    width = int(random.integers(6, 12))
    for stroke in ways[random.integers(len(ways))]:
        points = np.array(stroke) + random.normal(0, 0.04, (len(stroke), 2))
        points = points + bend * np.sin(points[:, ::-1] * 2 + phase)
        points = points @ np.array([[1, lean], [-slant, 1]]) * (DOTS / 2) + 1.5 * DOTS
        pen.line([(float(x), float(y)) for x, y in points], fill=255, width=width, joint="curve")
    return scanned(sheet, random)


def typeset(letter: str, random: Generator) -> np.ndarray:
    """A letter or digit in Pillow's built-in typeface, as a scan would have it: (8, 8) in 0..16."""
    sheet = Image.new("L", (3 * DOTS, 3 * DOTS))
    bold = int(random.integers(0, 4))
    font = ImageFont.load_default(float(random.integers(70, 90)))
    ImageDraw.Draw(sheet).text((DOTS, DOTS), letter, fill=255, font=font, stroke_width=bold)
    tilt = sheet.rotate(random.uniform(-14, 8), Image.Resampling.BILINEAR, center=(1.5 * DOTS, 1.5 * DOTS))
    return scanned(tilt, random)


def scanned(sheet: Image.Image, random: Generator) -> np.ndarray:
    """Cut a figure out, fit it to the height of the page, and count its ink per cell: (8, 8) in 0..16."""
    box = sheet.getbbox() or (0, 0, DOTS, DOTS)
    left, top, right, bottom = box
    high = bottom - top
    wide = min(DOTS, max(2, round((right - left) * DOTS / high * random.uniform(0.8, 1.15))))
    figure = sheet.crop(box).resize((wide, DOTS), Image.Resampling.BILINEAR)
    page = Image.new("L", (DOTS, DOTS))
    page.paste(figure, ((DOTS - wide) // 2, 0))
    cells = np.asarray(page, np.float64).reshape(8, DOTS // 8, 8, DOTS // 8).mean(axis=(1, 3))
    return np.clip(np.rint(cells / 255 * FULL * random.uniform(0.9, 1.1)), 0, FULL).astype(np.uint8)
