"""Digits in many typefaces, rendered once.

The atlas `art/glyphs.png` has one row per face and one column per digit, in cells of 24x24, ink white on black;
`art/glyphs.json` names the faces. `scripts/tiny/atlas.py` made it from OFL typefaces (see NOTICE).
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

ATLAS = Path(__file__).parent / "art" / "glyphs"
CELL = 24
"""Width and height of a cell, in pixels."""


@cache
def faces() -> dict[str, tuple[tuple[Image.Image, ...], ...]]:
    """Digits of the faces of two sorts, `seen` and `held out`: per face ten pictures, L, 24 high, as wide as the ink.

    Every fourth family is held out; faces of one family are never of both sorts.
    """
    index = json.loads(ATLAS.with_suffix(".json").read_text(encoding="utf-8"))
    with Image.open(ATLAS.with_suffix(".png")) as sheet:
        sheet = sheet.convert("L")
    families = sorted({face["family"] for face in index})
    sorts: dict[str, list[tuple[Image.Image, ...]]] = {"seen": [], "held out": []}
    for row, face in enumerate(index):
        sort = "held out" if families.index(face["family"]) % 4 == 3 else "seen"
        sorts[sort].append(tuple(trimmed(sheet, digit, row) for digit in range(10)))
    return {sort: tuple(rows) for sort, rows in sorts.items()}


def trimmed(sheet: Image.Image, column: int, row: int) -> Image.Image:
    """One cell without the empty columns left and right of its ink."""
    cell = sheet.crop((column * CELL, row * CELL, (column + 1) * CELL, (row + 1) * CELL))
    left, _, right, _ = cell.getbbox() or (0, 0, CELL, CELL)
    return cell.crop((left, 0, right, CELL))


def set_number(face: tuple[Image.Image, ...], number: str, gap: int = 2) -> Image.Image:
    """A number in one face: L, 24 high."""
    digits = [face[int(digit)] for digit in number]
    line = Image.new("L", (sum(digit.width for digit in digits) + gap * (len(digits) - 1), CELL))
    left = 0
    for digit in digits:
        line.paste(digit, (left, 0))
        left += digit.width + gap
    return line


def cover(ink: Image.Image, back: tuple[float, float, float, float, float, float], side: int) -> np.ndarray:
    """Where the ink lies in a picture: (side, side, 1) in 0..1; `back` maps its pixels to those of `ink`."""
    placed = ink.transform((side, side), Image.Transform.AFFINE, back, Image.Resampling.BILINEAR)
    return np.asarray(placed, np.float64)[..., None] / 255
