"""Packs what the suite ships of others' work: the sprites of two tasks, and digits in many typefaces."""

import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from clipfuse.tiny import glyphs, sprites, vehicles
from clipfuse.tiny.scenes import THINGS
from tiny.sources import STYLES, artwork, typefaces


def pack_sprites(path: Path) -> None:
    """Write `sprites.png` and `sprites.json`. Raises ValueError for a thing that a style lacks."""
    named = [*vehicles.ART.values(), *vehicles.STREET, *(thing for place in THINGS for thing in place)]
    things = sorted(set(named))
    side = sprites.CELL
    sheet = Image.new("RGBA", (side * len(STYLES), side * len(things)))
    for row, thing in enumerate(things):
        pictures = artwork(thing, side)
        if len(pictures) != len(STYLES):
            raise ValueError(f"{thing}: only {len(pictures)} of {len(STYLES)} styles have it")
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (column * side, row * side))
    sheet.save(path.with_suffix(".png"), optimize=True)
    write_json({"styles": STYLES, "things": things}, path.with_suffix(".json"))


def pack_glyphs(path: Path) -> None:
    """Write `glyphs.png` and `glyphs.json`."""
    side, rows, index = glyphs.CELL, [], []
    for family, weight, font in typefaces(size=8 * side):
        rows.append([digit(font, str(number), side) for number in range(10)])
        index.append({"family": family, "weight": weight})
    sheet = Image.new("L", (10 * side, side * len(rows)))
    for row, cells in enumerate(rows):
        for column, cell in enumerate(cells):
            sheet.paste(cell, (column * side, row * side))
    sheet.save(path.with_suffix(".png"), optimize=True)
    write_json(index, path.with_suffix(".json"))


def digit(font: ImageFont.FreeTypeFont, number: str, side: int) -> Image.Image:
    """One digit as high as the cell, centred, narrowed if it would be wider."""
    large = Image.new("L", (16 * side, 16 * side))
    ImageDraw.Draw(large).text((4 * side, 2 * side), number, fill=255, font=font)
    ink = large.crop(large.getbbox())
    wide = max(2, min(side, round(ink.width * side / ink.height)))
    cell = Image.new("L", (side, side))
    cell.paste(ink.resize((wide, side), Image.Resampling.LANCZOS), ((side - wide) // 2, 0))
    return cell


def write_json(value: object, path: Path) -> None:
    """One entry a line."""
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
