"""What models are measured on: tasks, splits, heads and preprocessing of one base."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from clipfuse.cache import cache_folder
from clipfuse.data import Preprocess, Split, open_split, read_preprocess
from clipfuse.errors import ConfigError, TaskError
from clipfuse.evaluate import Candidate, Record, Score, evaluate
from clipfuse.evaluate.metrics import wilson
from clipfuse.evaluate.record import environment
from clipfuse.fusion.merge import as_dtype
from clipfuse.heads import Head, zero_shot_heads
from clipfuse.models.encoder import ClipBase, open_base
from clipfuse.run.config import MeasureConfig
from clipfuse.run.progress import Stage, silent
from clipfuse.tasks import Task, TaskPoolConfig, catalog, find_task, fold, read_task
from clipfuse.tiny import materialise
from clipfuse.tiny.suite import SUITE, lacking
from clipfuse.tiny.task import SPLITS


@dataclass(frozen=True)
class Bench:
    """One base's heads, and the images of some tasks' splits."""

    base: ClipBase
    tasks: tuple[Task, ...]
    splits: Mapping[str, tuple[Split, ...]]
    """By name of the split, in the tasks' order."""
    heads: Mapping[str, Head]
    preprocess: Preprocess
    device: torch.device
    batch_size: int
    limit: int | None
    dtype: torch.dtype = torch.float32
    """Of the forward passes."""

    def score(self, candidates: Sequence[Candidate], split: str, stage: Stage) -> list[Score]:
        """Scores of candidates on every task's `split`."""
        splits = self.splits[split]
        images = sum(len(s) for s in splits for c in candidates if c.tasks is None or s.task in c.tasks)
        with stage(f"evaluate on {split}", images, "img") as told:
            return evaluate(
                candidates, splits, self.heads, self.preprocess,
                batch_size=self.batch_size, device=self.device, progress=told,
            )  # fmt: skip

    def record(self, score: Score, split: str, role: Literal["base", "expert", "merged", "other"], **of: Any) -> Record:
        """A score with all that is needed to get it again; `of` gives recipe or source, and uses."""
        task = next(task for task in self.tasks if task.name == score.task)
        return Record(
            model=score.model,
            role=role,
            recipe=of.get("recipe"),
            source=of.get("source"),
            base=self.base.ref,
            parameters=score.parameters,
            task=score.task,
            split=split,
            classes=len(task.classes),
            fingerprint=score.fingerprint,
            limit=self.limit,
            n=score.n,
            correct=score.correct,
            accuracy=score.correct / score.n,
            interval=wilson(score.correct, score.n),
            loss=score.loss,
            uses=tuple(of.get("uses", ())),
            dtype=str(self.dtype).removeprefix("torch."),
            batch_size=self.batch_size,
            environment=environment(score.seconds, str(self.device)),
        )


def find_tasks(taskpool: TaskPoolConfig) -> list[Task]:
    """The tasks of a pool; a list of names or paths."""
    tasks = [get_task(name) for name in taskpool.tasks]
    names = [task.name for task in tasks]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise TaskError(f"taskpool.tasks: {twice!r} is in it twice")
    return tasks


def get_task(name: str) -> Task:
    """A task by name or path; `tiny-…` comes from the offline suite. Raises TaskError with the nearest name."""
    return find_task(name, [tiny_folder()] if fold(name).startswith("tiny_") else [])


def all_tasks() -> list[Task]:
    """Every task that has a name."""
    return [read_task(path) for path in [*catalog().values(), *sorted(tiny_folder().glob("*.yaml"))]]


def tiny_folder() -> Path:
    """Where the offline suite's tasks are; their pictures are drawn by `draw_tiny`."""
    return materialise(cache_folder("tiny"), names=())


def is_tiny(task: Task) -> bool:
    """Whether the task is one of the offline suite, whose pictures appear when they are needed."""
    return task.name in {known.name for known in SUITE} and Path(str(task.folder)).parent == tiny_folder()


def draw_tiny(tasks: Sequence[Task], splits: Sequence[str], stage: Stage = silent) -> None:
    """Draw the pictures of those tasks that are of the offline suite, unless the cache has them."""
    names = {task.name for task in tasks if is_tiny(task)}
    counts = [task.counts()[s] for task in SUITE if task.name in names for s in lacking(task, splits, tiny_folder())]
    if counts:
        with stage("draw the tiny suite, once", sum(counts), "img") as told:
            materialise(cache_folder("tiny"), names, splits, told)


def open_bench(
    tasks: Sequence[Task],
    base: str,
    splits: Sequence[str],
    config: MeasureConfig,
    dtype: str = "float32",
    stage: Stage = silent,
) -> Bench:
    """Open the splits first (they fail soonest), then the base, then encode the prompts."""
    device = as_device(config.device)
    draw_tiny(tasks, [name for name in splits if name in SPLITS], stage)
    opened = {name: tuple(open_split(task, name, config.limit, config.seed) for task in tasks) for name in splits}
    clip = open_base(base)
    preprocess = read_preprocess(clip.folder)
    heads = zero_shot_heads(clip, tasks)
    kind = as_dtype(dtype) or torch.float32
    return Bench(clip, tuple(tasks), opened, heads, preprocess, device, config.batch_size, config.limit, kind)


def as_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises ConfigError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device: {name!r} cannot be used ({str(error).splitlines()[0]})") from None
    return device
