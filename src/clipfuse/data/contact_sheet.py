"""Samples of a task in one picture: tiles in rows, the class below each."""

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

GAP = 12
"""Pixels around and between tiles."""
LINE = 18
"""Height of a caption."""
SIZE = 13
"""Of the captions' letters."""
WIDE = 1.6
"""About how much wider than high a sheet is, where no columns are asked for."""
PAPER, FRAME, INK = (255, 255, 255), (205, 205, 205), (45, 45, 45)


def contact_sheet(
    images: Sequence[tuple[str, Image.Image]], columns: int | None = None, tile: int = 112
) -> Image.Image:
    """Images with their captions, row by row; `tile` is the longest side of an image, in pixels.

    Small images are enlarged without smoothing, so that their pixels are seen. The same images give the same picture.

    Raises:
        ValueError: no images.
    """
    if not images:
        raise ValueError("contact_sheet: no images; it takes one or more")
    wide = min(columns or fitting(len(images), tile), len(images))
    high = -(-len(images) // wide)
    sheet = Image.new("RGB", (GAP + wide * (tile + GAP), GAP + high * (tile + LINE + GAP)), PAPER)
    pen, font = ImageDraw.Draw(sheet), caption_font()
    for number, (caption, image) in enumerate(images):
        left, top = GAP + number % wide * (tile + GAP), GAP + number // wide * (tile + LINE + GAP)
        shown = fit(image, tile)
        # On the floor of the tile: pictures that are wide and low keep close to their captions.
        corner = (left + (tile - shown.width) // 2, top + tile - shown.height)
        sheet.paste(shown, corner)
        # A white image would have no edges on white paper.
        pen.rectangle((corner[0] - 1, corner[1] - 1, corner[0] + shown.width, corner[1] + shown.height), outline=FRAME)
        text = shorten(caption, font, tile)
        indent = (tile - width(text, font)) / 2
        pen.text((left + round(indent), top + tile + 4), text, INK, font)
    return sheet


def fitting(count: int, tile: int) -> int:
    """Columns for a sheet about WIDE times as wide as high."""
    return max(1, round(math.sqrt(count * WIDE * (tile + LINE + GAP) / (tile + GAP))))


def fit(image: Image.Image, tile: int) -> Image.Image:
    """The whole image as models get it, in RGB; its longest side is `tile`."""
    scale = tile / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)


def caption_font() -> Font:
    """Pillow's own letters; smaller ones of one size where it is older than 10.1 or built without FreeType."""
    try:
        return ImageFont.load_default(SIZE)
    except (TypeError, ImportError):
        return ImageFont.load_default()


def width(text: str, font: Font) -> float:
    """Pixels that a text takes."""
    return float(font.getlength(text))


def shorten(text: str, font: Font, room: int) -> str:
    """The text, or as much of its beginning as fits with an ellipsis; without accents, which the letters lack."""
    text = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    text = text.encode("ascii", "replace").decode()
    dots = "…" if isinstance(font, ImageFont.FreeTypeFont) else "..."
    if width(text, font) <= room:
        return text
    kept = next((n for n in range(len(text) - 1, 0, -1) if width(text[:n].rstrip() + dots, font) <= room), 0)
    return text[:kept].rstrip() + dots


def choose_samples(labels: Sequence[int], count: int, classes: int, seed: int) -> list[int]:
    """Rows of `count` images, or of all if there are fewer, in class order; seeded.

    No class is shown twice before every class that has images is shown once, and so on. Where there are more classes
    than images to show, the seed chooses among them.
    """
    random = torch.Generator().manual_seed(seed)
    favour = torch.randperm(classes, generator=random).tolist()
    seen: Counter[int] = Counter()
    turn: list[tuple[int, int, int]] = []
    for row in torch.randperm(len(labels), generator=random).tolist():
        turn.append((seen[labels[row]], favour[labels[row]], row))
        seen[labels[row]] += 1
    return sorted((row for _, _, row in sorted(turn)[:count]), key=lambda row: (labels[row], row))
