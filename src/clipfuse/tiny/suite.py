"""The list of tasks, and writing them out as image folders and task files."""

import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from clipfuse.tiny import digits, signs
from clipfuse.tiny.task import SPLITS, TinyTask

VERSION = "1"
"""Part of the folder's name: raise it whenever a picture or a task file changes."""

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the shipped models: `base/` and one expert per task, named like the task."""

SUITE: tuple[TinyTask, ...] = (
    digits.TASK,  # handwritten digits: real scans
    signs.TASK,  # traffic signs: drawn
)

NOTE = (
    "Tiny suite of clipfuse: small generated pictures for trying things out; its figures say nothing about real CLIP."
)


def materialise(cache: Path) -> Path:
    """Write the suite below `cache` unless it is there, and return its folder.

    The folder `tiny-<version>/` holds, per task, `<task>.yaml` and `<task>/<split>/<class name>/00000.png`, ...
    It appears at once and complete, also when two processes do this at the same time or one is interrupted.
    """
    cache = Path(cache)
    target = cache / f"tiny-{VERSION}"
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".tiny-") as scratch:
        draft = Path(scratch) / "suite"
        draft.mkdir()
        for task in SUITE:
            write_task(task, draft)
        try:
            os.rename(draft, target)
        except OSError:
            # Another process was first: a folder that holds something is not renamed over, and its content is the same.
            if not target.is_dir():
                raise
    return target


def write_task(task: TinyTask, folder: Path) -> None:
    """Write one task's pictures and its task file into `folder`."""
    counts = {split: write_split(task, split, folder / task.name / split) for split in SPLITS}
    (folder / f"{task.name}.yaml").write_text(task_file(task, counts["test"]), encoding="utf-8")


def write_split(task: TinyTask, split: str, folder: Path) -> int:
    """Write the pictures of one split, numbered within their class, and return how many there are."""
    for name in task.classes:
        (folder / name).mkdir(parents=True)
    seen: Counter[int] = Counter()
    for label, pixels in task.examples(split):
        path = folder / task.classes[label] / f"{seen[label]:05d}.png"
        Image.fromarray(pixels).save(path, compress_level=1)
        seen[label] += 1
    return seen.total()


def task_file(task: TinyTask, test_images: int) -> str:
    """The task as YAML text. All strings are in quotes: a class may be called "no" or "7"."""
    fields = {
        "name": task.name,
        "folder": task.name,
        "splits": {split: split for split in SPLITS},
        "templates": list(task.templates),
        "classes": list(task.classes),
        "test_images": test_images,
        "licence": task.licence,
        "paper": task.paper,
        "note": NOTE,
    }
    return "".join(f"{key}:{as_yaml(value)}\n" for key, value in fields.items())


def as_yaml(value: object) -> str:
    """A value after its key. JSON is YAML; lists and maps go one entry a line."""
    if isinstance(value, list):
        return "".join(f"\n  - {json.dumps(entry)}" for entry in value)
    if isinstance(value, Mapping):
        return "".join(f"\n  {key}: {json.dumps(entry)}" for key, entry in value.items())
    return f" {json.dumps(value)}"
