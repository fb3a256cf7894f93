"""Pictures of a task's images: samples of its classes, and pairs that an audit found."""

import io
from pathlib import Path

from PIL import Image

from clipfuse.checkpoints.writer import write_errors
from clipfuse.data import Split, open_split
from clipfuse.data.contact_sheet import choose_samples, contact_sheet
from clipfuse.data.decode import UNREADABLE, read
from clipfuse.errors import TaskError
from clipfuse.run.audit import Audit
from clipfuse.run.tasks import draw_tiny
from clipfuse.tasks import Task


def picture_of_pairs(audit: Audit, task: Task, most: int = 40) -> Image.Image:
    """Test images beside their partners in train, the nearest first."""
    triples = [*((row, partner, 0.0) for row, partner in audit.overlap.exact), *audit.overlap.near]
    tiles = []
    for row, partner, distance in sorted(triples, key=lambda triple: triple[2])[:most]:
        for split, at, what in ((audit.test, row, "test"), (audit.train, partner, f"train {distance:.2f}")):
            tiles.append((f"{what}: {task.classes[split.labels[at]]}", open_image(split, at)))
    return contact_sheet(tiles, columns=min(8, len(tiles)))


def open_image(split: Split, row: int) -> Image.Image:
    """One image. Raises TaskError for what cannot be read."""
    raw = read(split, row)
    try:
        return Image.open(io.BytesIO(raw)).convert("RGB")
    except UNREADABLE:
        raise TaskError(f"{split.task}: {split.label_of(row)}: is not a readable image") from None


def picture_of_samples(task: Task, split: str, count: int, seed: int = 0) -> Image.Image:
    """A contact sheet of images of as many classes as possible."""
    draw_tiny([task], [split])
    opened = open_split(task, split)
    rows = choose_samples(opened.labels, count, len(task.classes), seed)
    return contact_sheet([(task.classes[int(opened.labels[row])], open_image(opened, row)) for row in rows])


def save_picture(picture: Image.Image, path: Path) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.part{path.suffix}")
    with write_errors(path):
        try:
            picture.save(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
