"""Opening a task's split: an image folder, table files, or a data set of the hub."""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipfuse.data.hub_data import is_table, open_hub, open_table
from clipfuse.errors import TaskError, unknown
from clipfuse.tasks import Task

log = logging.getLogger(__name__)
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
VAL_SHARE = 0.1
"""Share of train that is held out as `val` where a task has no val split of its own."""


@dataclass(frozen=True)
class Split:
    """Images of one split: labels in order, and how to read the encoded bytes of image i."""

    task: str
    name: str
    labels: Sequence[Any]
    """Numbers of classes, int; those of `without_labels` may not be looked at, by no checker of types either."""
    read: Callable[[int], bytes]
    label_of: Callable[[int], str] = str
    """What image i is called in errors."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Where the images come from, with all that tells whether they changed; empty where that is not known."""
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """How they were chosen from there, if not all of them: `carved` from another split, or to a `limit`."""
    rows: Sequence[int] | None = None
    """Which images of the source; None is all."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Sequence[int], **chosen: Any) -> "Split":
        """The same split with the images `rows` only; `chosen` says how they were chosen."""
        source = self.rows
        return replace(
            self,
            labels=[self.labels[row] for row in rows],
            read=lambda i: self.read(rows[i]),
            label_of=lambda i: self.label_of(rows[i]),
            chosen={**self.chosen, **chosen},
            rows=[source[row] for row in rows] if source is not None else list(rows),
        )

    def key(self, *facts: str) -> str | None:
        """Digest of what the images are, and of `facts`; None where that is not known."""
        if not self.origin:
            return None
        rows = hashlib.sha256(np.asarray(self.rows, np.int64).tobytes()).hexdigest() if self.rows is not None else "all"
        labels = hashlib.sha256(np.asarray(self.labels, np.int64).tobytes()).hexdigest()
        tree = [dict(self.origin), rows, labels, *facts]
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def open_split(task: Task, split: str = "test", limit: int | None = None, seed: int = 0) -> Split:
    """A split of a task. With `limit`, a seeded choice of that many images. `val` may be a seeded 10 % of train.

    Raises:
        TaskError: no such split, no images, a class that the task does not have, or labels out of range.
    """
    carve = split == "val" and "val" not in task.splits
    if split not in task.splits and not carve:
        raise TaskError(f"{task.name}: " + unknown("split", split, task.splits))
    source = "train" if carve else split
    if source not in task.splits:
        raise TaskError(f"{task.name}: has no split 'val', nor 'train' to take it from")
    opened = open_source(task, source)
    check_split(task, opened)
    if carve:
        opened = carve_val(task, opened, seed)
    if limit is not None and limit < len(opened):
        opened = opened.take(seeded_rows(len(opened), limit, seed), limit={"images": limit, "seed": seed})
    return opened


def open_source(task: Task, split: str) -> Split:
    """All images of a split as its source has them."""
    if task.folder is None:
        table = open_hub(task, split)
    elif is_table(Path(task.folder), task.splits[split]):
        table = open_table(task, Path(task.folder), split)
    else:
        return open_folder(task, split)
    return Split(task.name, split, table.labels, table.read, table.label_of, table.origin)


def check_split(task: Task, split: Split) -> None:
    """Compare a whole split with the task's description; a test split of another size is warned of.

    Raises:
        TaskError: it is empty, or a label is out of range.
    """
    if not len(split):
        raise TaskError(f"{task.name}: the split {split.name!r} is empty")
    count = len(task.classes)
    wrong = next((row for row, label in enumerate(split.labels) if not 0 <= label < count), None)
    if wrong is not None:
        many = sum(not 0 <= label < count for label in split.labels)
        raise TaskError(
            f"{task.name}: label {split.labels[wrong]} of {split.label_of(wrong)} ({many} of {len(split)} labels in "
            f"{split.name!r} are out of range); the task has {count} classes, 0 to {count - 1}"
        )
    there = set(split.labels)
    if missing := [name for label, name in enumerate(task.classes) if label not in there]:
        log.warning("%s: no %s images of %d classes, e.g. %r", task.name, split.name, len(missing), missing[0])
    if remark := size_remark(task, split):
        log.warning(remark)


def size_remark(task: Task, split: Split) -> str | None:
    """What is to be said where a whole test split has another size than the task's description says."""
    if split.name != "test" or task.test_images in (None, len(split)) or "limit" in split.chosen:
        return None
    whose = "published figures are of" if task.hub_dataset else "its description says"
    return f"{task.name}: {len(split):,} test images; {whose} {task.test_images:,}"


def carve_val(task: Task, train: Split, seed: int) -> Split:
    """A seeded tenth of train, for tasks without a val split."""
    rows = seeded_rows(len(train), max(1, int(VAL_SHARE * len(train))), seed)
    log.warning(
        "%s: has no val split; %d of %d train images stand in (seed %d); published experts were trained on them",
        *(task.name, len(rows), len(train), seed),
    )
    return replace(train.take(rows, carved={"of": "train", "share": VAL_SHARE, "seed": seed}), name="val")


def seeded_rows(count: int, wanted: int, seed: int) -> list[int]:
    """`wanted` of `count` rows, in order."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return sorted(order[:wanted].tolist())


def open_folder(task: Task, split: str) -> Split:
    """An image folder `<split>/<class name>/…png`, in sorted order."""
    root = Path(str(task.folder)) / task.splits[split]
    if not root.is_dir():
        raise TaskError(f"{task.name}: {root}: no such folder; it should hold one folder a class")
    label = {name: number for number, name in enumerate(task.classes)}
    files: list[tuple[Path, int]] = []
    for folder in sorted(path for path in root.iterdir() if path.is_dir()):
        if folder.name not in label:
            raise TaskError(f"{task.name}: {root}: " + unknown("class", folder.name, label))
        images = (path for path in sorted(folder.iterdir()) if path.suffix.lower() in IMAGES)
        files += [(path, label[folder.name]) for path in images]
    files.sort(key=lambda found: found[1])
    paths = [path for path, _ in files]
    origin = {"folder": str(root.resolve()), "files": listing(paths)}
    labels = [number for _, number in files]
    return Split(task.name, split, labels, lambda i: paths[i].read_bytes(), lambda i: str(paths[i]), origin)


def listing(paths: Sequence[Path]) -> str:
    """Digest of files' names, sizes and times of change: another one when a file was changed."""
    found = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        found.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return found.hexdigest()
