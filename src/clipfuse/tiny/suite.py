"""The list of tasks, and writing them out as image folders and task files."""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from clipfuse.cores import available_cores
from clipfuse.errors import OutputError
from clipfuse.tiny import aerial, digits, housenumbers, landcover, scenes, signs, textures, vehicles
from clipfuse.tiny.task import SPLITS, TinyTask

VERSION = "2"
"""Part of the folder's name: raise it whenever a picture or a task file changes."""

WEIGHTS = Path(__file__).parent / "weights"
"""Folder of the shipped models: `base/` and one expert per task, named like the task."""

SUITE: tuple[TinyTask, ...] = (
    scenes.TASK,
    vehicles.TASK,
    aerial.TASK,
    landcover.TASK,
    housenumbers.TASK,
    signs.TASK,
    digits.TASK,
    textures.TASK,
)
"""In the order of the eight tasks that they mirror: SUN397, Cars, RESISC45, EuroSAT, SVHN, GTSRB, MNIST, DTD."""

NOTE = (
    "Tiny suite of clipfuse: small generated pictures for trying things out; its figures say nothing about real CLIP."
)


def materialise(
    cache: Path,
    names: Iterable[str] | None = None,
    splits: Sequence[str] = SPLITS,
    progress: Callable[[int], None] = lambda count: None,
) -> Path:
    """Write the suite below `cache` as far as it is not there, and return its folder.

    The folder `tiny-<version>/` holds `<task>.yaml` for every task and, for the tasks and splits that were asked for,
    the pictures `<task>/<split>/<class name>/00000.png`, ... What appears there is complete, also when two processes do
    this at the same time or one is interrupted. Each task is drawn in a process of its own, on all cores.

    Args:
        cache: Where the folder belongs.
        names: Tasks to draw; all of them if None. Other names are ignored.
        splits: Which splits of them.
        progress: Told how many pictures have been written since the last call.

    Raises:
        OutputError: the folder cannot be written.
    """
    target = Path(cache).absolute() / f"tiny-{VERSION}"
    wanted = {task.name for task in SUITE} if names is None else set(names)
    try:
        target.mkdir(parents=True, exist_ok=True)
        for task in SUITE:
            write_whole(target / f"{task.name}.yaml", task_file(task))
        missing = [(task, lacking(task, splits, target)) for task in SUITE if task.name in wanted]
        missing = [(task, lacks) for task, lacks in missing if lacks]
        if missing:
            with tempfile.TemporaryDirectory(dir=target, prefix=".draft-") as draft:
                draw_all(missing, Path(draft), target, progress)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error})") from None
    return target


Job = tuple[TinyTask, Sequence[str]]
"""A task, and those of its splits that are to be drawn."""


def lacking(task: TinyTask, splits: Sequence[str], folder: Path) -> list[str]:
    """Those of the splits that a folder of the suite does not have."""
    return [split for split in splits if not (folder / task.name / split).is_dir()]


def draw_all(jobs: Sequence[Job], draft: Path, target: Path, progress: Callable[[int], None]) -> None:
    """Draw in `draft`, as many tasks at a time as there are cores; move each into `target` when it is complete."""
    running: list[subprocess.Popen[str]] = []
    pool = ThreadPoolExecutor(available_cores())
    try:
        for task, splits in pool.map(lambda job: draw(job, draft, running), jobs):
            for split in splits:
                move_in(draft / task.name / split, target / task.name / split)
            progress(sum(task.counts()[split] for split in splits))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in running:
            process.kill()
        pool.shutdown()


def draw(job: Job, folder: Path, running: list[subprocess.Popen[str]]) -> Job:
    """Write pictures into `folder`, in a process that is added to `running`; return the job."""
    task, splits = job
    places = os.pathsep.join(path for path in sys.path if path)
    words = [sys.executable, "-P", "-m", "clipfuse.tiny", str(folder), task.name, *splits]
    process = subprocess.Popen(words, env={**os.environ, "PYTHONPATH": places}, stderr=subprocess.PIPE, text=True)
    running.append(process)
    _, said = process.communicate()
    if process.returncode:
        raise OSError(f"{task.name}: {said.strip().splitlines()[-1] if said.strip() else 'the drawing was stopped'}")
    return job


def move_in(draft: Path, target: Path) -> None:
    """Rename a folder into its place, unless another process was first: its content is the same."""
    target.parent.mkdir(exist_ok=True)
    try:
        os.rename(draft, target)
    except OSError:
        if not target.is_dir():
            raise


def write_whole(path: Path, text: str) -> None:
    """Write a small file that nobody ever sees half written; one that is there stays."""
    if path.exists():
        return
    number, draft = tempfile.mkstemp(dir=path.parent, prefix=".draft-")
    with os.fdopen(number, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(draft, 0o644)
    os.replace(draft, path)


def write_split(task: TinyTask, split: str, folder: Path) -> None:
    """Write the pictures of one split, numbered within their class."""
    for name in task.classes:
        (folder / name).mkdir(parents=True)
    seen: Counter[int] = Counter()
    for label, pixels in task.examples(split):
        path = folder / task.classes[label] / f"{seen[label]:05d}.png"
        Image.fromarray(pixels).save(path, compress_level=1)
        seen[label] += 1


def task_file(task: TinyTask) -> str:
    """The task as YAML text. All strings are in quotes: a class may be called "no" or "7"."""
    fields = {
        "name": task.name,
        "folder": task.name,
        "splits": {split: split for split in SPLITS},
        "templates": list(task.templates),
        "classes": list(task.classes),
        "test_images": task.counts()["test"],
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
