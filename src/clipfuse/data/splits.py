"""Opening a task's split: an image folder, or a data set of the hub; and its images in preprocessed blocks."""

import hashlib
import io
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from clipfuse.cores import available_cores
from clipfuse.data.preprocess import Preprocess
from clipfuse.errors import TaskError, unknown
from clipfuse.shapes import Int, UInt8
from clipfuse.tasks import Task

log = logging.getLogger(__name__)
IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
BLOCK = 1024
"""Images that are in memory at a time."""
VAL_SHARE = 0.1
"""Share of train that is held out as `val` where a task has no val split of its own."""


@dataclass(frozen=True)
class Split:
    """Images of one split: labels in order, and how to read the encoded bytes of image i."""

    task: str
    name: str
    labels: Sequence[int]
    read: Callable[[int], bytes]
    label_of: Callable[[int], str] = str
    """What image i is called in errors."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Sequence[int]) -> "Split":
        """The same split with the images `rows` only."""
        return replace(
            self,
            labels=[self.labels[row] for row in rows],
            read=lambda i: self.read(rows[i]),
            label_of=lambda i: self.label_of(rows[i]),
        )


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
    opened = open_folder(task, source) if task.folder else open_hub(task, source)
    if not len(opened):
        raise TaskError(f"{task.name}: the split {split!r} is empty")
    wrong = next((label for label in opened.labels if not 0 <= label < len(task.classes)), None)
    if wrong is not None:
        raise TaskError(f"{task.name}: label {wrong} in {split!r}; the task has {len(task.classes)} classes")
    if carve:
        order = torch.randperm(len(opened), generator=torch.Generator().manual_seed(seed))
        rows = sorted(order[: max(1, int(VAL_SHARE * len(opened)))].tolist())
        log.warning(
            "%s: has no val split; %d of %d train images stand in (seed %d)", task.name, len(rows), len(opened), seed
        )
        opened = replace(opened.take(rows), name="val")
    if limit is not None and limit < len(opened):
        order = torch.randperm(len(opened), generator=torch.Generator().manual_seed(seed))
        opened = opened.take(sorted(order[:limit].tolist()))
    return opened


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
    if missing := [name for name in task.classes if label[name] not in {number for _, number in files}]:
        log.warning("%s: no %s images of %d classes, e.g. %r", task.name, split, len(missing), missing[0])
    paths = [path for path, _ in files]
    return Split(
        task.name, split, [number for _, number in files], lambda i: paths[i].read_bytes(), lambda i: str(paths[i])
    )


def open_hub(task: Task, split: str) -> Split:
    """A data set of the hub through `datasets`; images stay encoded until they are needed."""
    import datasets
    from datasets.exceptions import DatasetsError

    try:
        with quiet_datasets():
            table: Any = datasets.load_dataset(
                str(task.hub_dataset), task.hub_config, split=task.splits[split], revision=task.revision
            )
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise TaskError(
            f"{task.name}: {task.hub_dataset} cannot be opened ({first}); run: clipfuse fetch taskpool=NAME_OR_FILE"
        ) from None
    for column in (task.image_column, task.label_column):
        if column not in table.column_names:
            raise TaskError(f"{task.name}: {task.hub_dataset}: " + unknown("column", column, table.column_names))
    try:
        labels = [int(label) for label in table[task.label_column]]
    except (TypeError, ValueError):
        raise TaskError(
            f"{task.name}: {task.hub_dataset}: column {task.label_column!r} holds no label numbers"
        ) from None
    images = table.cast_column(task.image_column, datasets.Image(decode=False))

    def read(i: int) -> bytes:
        found = images[i][task.image_column]
        return found["bytes"] if found["bytes"] is not None else Path(found["path"]).read_bytes()

    return Split(task.name, split, labels, read, lambda i: f"{task.hub_dataset} {task.splits[split]}[{i}]")


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """No progress and no word of retries from `datasets` and the hub's client; what fails is told in one line."""
    import datasets
    from huggingface_hub.utils import logging as hub_logging

    before = datasets.logging.get_verbosity(), hub_logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(before[0])
        hub_logging.set_verbosity(before[1])
        if not before[2]:
            datasets.enable_progress_bars()


@dataclass(frozen=True)
class Block:
    """Preprocessed images in memory; `digest` is the sha256 over their encoded bytes and labels."""

    pixels: UInt8[Tensor, "image 3 side side"]
    labels: Int[Tensor, "image"]
    digest: bytes


def blocks(split: Split, preprocess: Preprocess, size: int = BLOCK) -> Iterator[Block]:
    """The split's images in blocks, decoded on all cores.

    Raises:
        TaskError: an image that cannot be read; it is named.
    """

    def load(i: int) -> tuple[bytes, Tensor]:
        try:
            raw = split.read(i)
            return hashlib.sha256(raw).digest(), preprocess.pixels(Image.open(io.BytesIO(raw)))
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError):
            raise TaskError(f"{split.task}: {split.label_of(i)}: is not a readable image") from None

    with ThreadPoolExecutor(available_cores()) as threads:
        for start in range(0, len(split), size):
            rows = range(start, min(start + size, len(split)))
            found = list(threads.map(load, rows))
            labels = torch.tensor([split.labels[row] for row in rows])
            digest = hashlib.sha256(b"".join(one for one, _ in found) + labels.numpy().tobytes()).digest()
            yield Block(torch.stack([pixels for _, pixels in found]), labels, digest)
