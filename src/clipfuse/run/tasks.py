"""Finding tasks: by name from the catalogue or the offline suite, or by the path of a YAML file."""

from collections.abc import Sequence
from pathlib import Path

from clipfuse.cache import cache_folder
from clipfuse.errors import TaskError
from clipfuse.progress import Stage, silent
from clipfuse.tasks import Task, TaskPoolConfig, catalog, find_task, fold, read_task
from clipfuse.tiny import materialise
from clipfuse.tiny.suite import SUITE, lacking


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
