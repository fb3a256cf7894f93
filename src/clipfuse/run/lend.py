"""Lending: images of a task pool, for the methods that look at them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from clipfuse.cache import cache_folder
from clipfuse.config import parse
from clipfuse.config.presets import load_preset
from clipfuse.data import ImageSet, open_images, open_split, read_preprocess
from clipfuse.data.fingerprint import fingerprint
from clipfuse.data.gather import Rows
from clipfuse.data.image_cache import unreadable_rows
from clipfuse.data.splits import Split
from clipfuse.data.withheld import without_labels
from clipfuse.errors import ModelError, PoolError
from clipfuse.fusion.lent import Lent, Looked
from clipfuse.heads import zero_shot_heads
from clipfuse.models.clip_base import ClipBase, known_base, open_base
from clipfuse.pool import PRETRAINED, HuggingFaceClipVisionPool
from clipfuse.progress import Stage, silent
from clipfuse.run.bench import as_device, decode
from clipfuse.run.config import MeasureConfig
from clipfuse.run.tasks import draw_tiny, find_tasks
from clipfuse.tasks import Task, TaskPoolConfig
from clipfuse.tiny.task import SPLITS

SPLIT_NAMES = ("train", "val", "test")


class TaskLender:
    """Lends images of tasks to the experts whose names the tasks answer to; `clipfuse.open_data` makes one."""

    def __init__(self, tasks: Sequence[Task], base: str | None, config: MeasureConfig, stage: Stage = silent):
        """`base` gives text encoder, projection and processor; None is the pool's."""
        self.tasks, self.base_ref, self.config, self.stage = tasks, base, config, stage
        self.splits: dict[tuple[str, str], Split] = {}
        self.bases: dict[str, ClipBase] = {}

    def task_of(self, expert: str) -> Task:
        """The task of an expert. Raises PoolError if there is none."""
        found = next((task for task in self.tasks if task.answers_to(expert)), None)
        if found is None:
            names = ", ".join(task.name for task in self.tasks)
            raise PoolError(
                f"{expert}: no task of the task pool is this expert's ({names}); the method needs its images"
            )
        return found

    def check(self, experts: Sequence[str], uses: Sequence[str]) -> None:
        """Open the splits that a method looks at.

        Raises:
            PoolError: an expert that has no task.
            TaskError: a split that is not there.
        """
        tasks = list({task.name: task for task in map(self.task_of, experts)}.values())
        names = [name for name in SPLIT_NAMES if any(use.startswith(name) for use in uses)]
        draw_tiny(tasks, [name for name in names if name in SPLITS], self.stage)
        for task in tasks:
            for name in names:
                if (task.name, name) not in self.splits:
                    self.splits[task.name, name] = open_split(task, name, self.config.limit, self.config.seed)

    def lend(self, experts: Sequence[str], uses: Sequence[str], seed: int, base: str | None = None) -> Lent:
        """What a method with these `uses` may look at: heads are made, and images decoded, where the cache lacks them.

        Raises:
            TaskError, PoolError, LocateError, ModelError: what cannot be found or read.
        """
        self.check(experts, uses)
        ref = self.base_ref or base
        if ref is None:
            raise ModelError("the pool's base is no file; open_data takes one, base='openai/clip-vit-base-patch32'")
        if ref not in self.bases:
            self.bases[ref] = open_base(ref)
        clip = self.bases[ref]
        tasks = {expert: self.task_of(expert) for expert in experts}
        preprocess = read_preprocess(clip.folder)
        if preprocess.crop != (side := clip.geometry.image_size):
            raise ModelError(f"{ref}: its processor gives images of {preprocess.crop} px, its tower takes {side}")
        known = {task.name: task for task in tasks.values()}
        heads = zero_shot_heads(clip, list(known.values()), cache_folder("heads"))
        wanted = [name for name in SPLIT_NAMES if f"{name}_images" in uses]
        sets = {
            (task, name): open_images(
                self.splits[task, name], preprocess, self.config.image_cache, self.config.unreadable
            )
            for task in known
            for name in wanted
        }
        decode(list(sets.values()), self.stage)
        rows: dict[tuple[str, str], Rows] = {}
        looked: dict[tuple[str, str], Looked] = {}
        for expert, task in tasks.items():
            for name in wanted:
                images = sets[task.name, name]
                looked[expert, name] = ledger_of(task, images)
                if f"{name}_labels" not in uses:
                    images = without_labels(images, f"{name}_labels: the method does not declare that it looks at them")
                rows[expert, name] = Rows(images)
        return Lent(
            tuple(experts), tuple(uses), {expert: heads[task.name] for expert, task in tasks.items()},
            clip.projection, preprocess, rows, looked, seed, as_device(self.config.device),
            self.config.precision, self.stage,
        )  # fmt: skip


def lender_for(
    pool: HuggingFaceClipVisionPool, taskpool: TaskPoolConfig, config: MeasureConfig, stage: Stage = silent
) -> TaskLender:
    """What lends the images of a task pool to a pool's methods. Raises ModelError where no base is known."""
    return TaskLender(find_tasks(taskpool), base_for(pool, taskpool), config, stage)


def base_for(pool: HuggingFaceClipVisionPool, taskpool: TaskPoolConfig) -> str:
    """The CLIP whose text encoder goes with a pool: the task pool's, else the pool's, else the known one."""
    own = pool.get_model_config(PRETRAINED).ref if pool.has_pretrained else None
    return taskpool.base or own or known_base(pool.weights.geometry, "the pool")


def ledger_of(task: Task, images: ImageSet) -> Looked:
    """An empty ledger of a split."""
    count, bad = len(images.split), set()
    if images.unreadable == "skip" and images.entry:
        bad = set(unreadable_rows(images.entry))
    usable = [row for row in range(count) if row not in bad]
    rows, looks = torch.zeros(count, dtype=torch.bool), torch.zeros((), dtype=torch.int64)
    return Looked(task.name, fingerprint(images), images.split.chosen, usable, rows, looks)


def open_data(
    taskpool: str | Path | Sequence[str] | Mapping[str, Any], base: str | None = None, stage: Stage = silent, **how: Any
) -> TaskLender:
    """Images for methods that look at them, as in `clipfuse.merge(pool, "regmean", data=clipfuse.open_data("TA8"))`.

    Args:
        taskpool: A preset's name or YAML file, a list of tasks, or a task pool's tree.
        base: The CLIP that gives text encoder, projection and processor; by default the task pool's, or that of the
            models that are merged.
        stage: Shows progress.
        how: `device`, `precision`, `seed`, `limit`, `image_cache`, `unreadable`, as in a run.

    Raises:
        ConfigError, TaskError, ModelError: what is not known.
    """
    tree = {"tasks": list(taskpool)} if isinstance(taskpool, Sequence) and not isinstance(taskpool, str) else taskpool
    tree = load_preset("taskpool", str(tree)) if isinstance(tree, (str, Path)) else tree
    config = parse(TaskPoolConfig, tree, "taskpool")
    return TaskLender(find_tasks(config), base or config.base, parse(MeasureConfig, how, "open_data"), stage)
