"""A contact sheet per task, for the documentation."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clipfuse.tiny.canvas import SIDE
from clipfuse.tiny.suite import SUITE
from clipfuse.tiny.task import TinyTask

COLUMNS, MARGIN, NAMES = 12, 2, 150


def write_sheets(folder: Path) -> None:
    """Write `<task>.webp` for every task: a row per class, its first test pictures, twice enlarged."""
    folder.mkdir(parents=True, exist_ok=True)
    for task in SUITE:
        sheet(task).save(folder / f"{task.name}.webp", quality=80, method=6)


def sheet(task: TinyTask) -> Image.Image:
    """The first test pictures of every class."""
    rows: list[list[np.ndarray]] = [[] for _ in task.classes]
    for label, picture in task.examples("test"):
        if len(rows[label]) < COLUMNS:
            rows[label].append(picture)
    step = 2 * SIDE + MARGIN
    page = Image.new("RGB", (NAMES + COLUMNS * step, len(rows) * step), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(14)
    for row, (name, pictures) in enumerate(zip(task.classes, rows, strict=True)):
        pen.text((NAMES - 8, row * step + SIDE), name, fill="black", font=font, anchor="rm")
        for column, picture in enumerate(pictures):
            large = Image.fromarray(picture).resize((2 * SIDE, 2 * SIDE), Image.Resampling.NEAREST)
            page.paste(large, (NAMES + column * step, row * step))
    return page
