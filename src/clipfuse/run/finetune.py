"""`finetune`: tasks, a base and a recipe → experts, each in a folder that is ready to be a pool's member."""

import gc
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from clipfuse.checkpoints.checkpoint import open_checkpoint
from clipfuse.checkpoints.expert_facts import read_facts
from clipfuse.checkpoints.ledger import Ledger, keep_ledger
from clipfuse.checkpoints.locate import CLIP, locate
from clipfuse.checkpoints.writer import check_output
from clipfuse.config import parse
from clipfuse.errors import ConfigError, OutputError
from clipfuse.evaluate.workers import Workers, find_workers
from clipfuse.finetune.batches import TrainingTask
from clipfuse.finetune.recipe import Recipe
from clipfuse.finetune.runtime import (
    begin_tracking,
    check_precision,
    check_trackers,
    end_tracking,
    make_accelerator,
)
from clipfuse.finetune.state import StateFile
from clipfuse.finetune.train import Running, Training
from clipfuse.finetune.trained import make_trained
from clipfuse.progress import Stage, silent
from clipfuse.run.bench import as_device
from clipfuse.run.expert_folder import write_expert
from clipfuse.run.finetune_config import FinetuneConfig, finetune_config
from clipfuse.run.finetune_data import Data, open_data
from clipfuse.run.finetune_facts import asked_of, facts_of, key_of, sizes_of
from clipfuse.run.finetune_plans import Plan, base_of, make_plans, write_pool
from clipfuse.run.tasks import find_tasks
from clipfuse.tasks import TaskPoolConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Expert:
    """One model of a fine-tuning."""

    name: str
    folder: Path
    facts: Mapping[str, Any] | None
    """What `finetune.json` says; None while it is not finished."""
    steps: int
    """That were made."""
    of: int
    """Steps that there are to make."""
    kept: bool = False
    """Whether it was there already."""


def fine_tune(stage: Stage = silent, **settings: Any) -> list[Expert]:
    """Fine-tune a CLIP's vision encoder.

    Args:
        stage: Shows progress.
        settings: The fields of `clipfuse.run.finetune_config.FinetuneConfig`: `task` (a name, or a list) or `taskpool`,
            `base`, `recipe`, `mode`, `out`, …, and those of the recipe, which lie over the preset's: `steps` or
            `epochs`, `lr`, `batch_size` (images a step of each task), …

    Returns:
        The experts, in order; one whose `facts` are None is not finished, as time was up.

    Raises:
        ClipfuseError: one line; what was trained so far is in the state file that it names.

    Examples:
        >>> fine_tune(task="gtsrb", base="openai/clip-vit-base-patch32", out="experts/gtsrb")  # doctest: +SKIP
    """
    return finetune(settings, stage)


def finetune(
    tree: Mapping[str, Any], stage: Stage = silent, done: Callable[[Expert], None] = lambda expert: None
) -> list[Expert]:
    """Fine-tune what a tree with the keys of `FinetuneConfig` says. Experts that are there are not made again.

    Args:
        tree: The settings.
        stage: Shows progress.
        done: Told each expert when it is finished.

    Raises:
        ClipfuseError: one line; what was trained so far is in the state file that it names.
        KeyboardInterrupt: ^C or SIGTERM; the same call goes on.
    """
    config = finetune_config(tree)
    deadline = time.monotonic() + 60 * config.max_minutes if config.max_minutes else None
    check_trackers(config.trackers)
    workers = find_workers(config.device)
    device = workers.device or as_device(config.device)
    check_precision(device, config.precision)
    if config.batch_size < workers.count:
        raise ConfigError(f"batch_size: is {config.batch_size} for {workers.count} processes; each takes one or more")
    names = [config.task] if isinstance(config.task, str) else list(config.task or ())
    tasks = find_tasks(parse(TaskPoolConfig, config.taskpool or {"tasks": names}, "taskpool"))
    base = base_of(config, tasks)
    plans = make_plans(config, tasks, base)
    with keep_ledger(config.locked) as ledger:
        check_outputs(plans, config, base)
        data = open_data(tasks, base, config, workers, stage)
        makers = [Maker(plan, data, config, workers, device, ledger) for plan in plans]
        for maker in makers[:1] if config.mode == "sequential" else makers:
            maker.find()
        found: list[Expert] = []
        for maker in makers:
            found.append(maker.make(found if config.mode == "sequential" else [], deadline, stage))
            if found[-1].facts is None:  # time is up
                break
            done(found[-1])
            if len(plans) > 1 and workers.first:
                write_pool(plans[: len(found)], base)
    return found


def check_outputs(plans: Sequence[Plan], config: FinetuneConfig, base: str) -> None:
    """Refuse folders that hold something else, the base among it. Raises OutputError, LocateError."""
    inputs = list(locate(base, CLIP).folder.glob("*"))
    for plan in plans:
        if config.overwrite or read_facts(plan.folder) is None:
            check_output(plan.folder, config.overwrite, inputs)


@dataclass(frozen=True)
class Maker:
    """Makes one model."""

    plan: Plan
    data: Data
    config: FinetuneConfig
    workers: Workers
    device: torch.device
    ledger: Ledger

    @cached_property
    def recipe(self) -> Recipe:
        return Recipe.model_validate({name: getattr(self.config, name) for name in Recipe.model_fields})

    @cached_property
    def tasks(self) -> list[TrainingTask]:
        return [self.data.tasks[name] for name in self.plan.tasks]

    @cached_property
    def steps(self) -> int:
        return self.recipe.steps_of({task.name: len(task.train) for task in self.tasks})

    def asked(self, start: Expert | None) -> dict[str, Any]:
        how = self.plan.tasks, self.data, self.config, self.steps, self.workers.count
        return asked_of(*how, start and start.folder)

    def find(self, start: Expert | None = None) -> Expert | None:
        """The expert, if it is there; None if it is to be made.

        Raises:
            OutputError: another one is there, or the state of another training.
            ConfigError: the recipe has no epochs for its task.
        """
        asked, there = self.asked(start), read_facts(self.plan.folder)
        if there and there["key"] == key_of(asked) and any(self.plan.folder.glob("*.safetensors")):
            return Expert(self.plan.name, self.plan.folder, there, self.steps, self.steps, kept=True)
        if there and not self.config.overwrite:
            raise OutputError(f"{self.plan.folder}: holds another expert; choose another --out or pass --overwrite")
        state = StateFile(self.plan.state, asked)
        if self.config.overwrite and self.workers.first:
            state.clear()
        self.workers.gather(None)
        if len(set(self.workers.gather(state.check()))) > 1:
            raise OutputError(f"{self.plan.state}: is not the same for all processes; they must share the file system")
        return None

    def make(self, before: Sequence[Expert], deadline: float | None, stage: Stage) -> Expert:
        """Train the model and write its folder, or find it there; `before` are those of its sequence.

        Raises ClipfuseError.
        """
        plan, data, start = self.plan, self.data, before[-1] if before else None
        if there := self.find(start):
            return there
        began, asked = time.monotonic(), self.asked(start)
        logs = plan.folder.absolute().parent / "logs" / plan.name
        accelerator = make_accelerator(self.device, self.recipe.precision, self.config.trackers, logs)
        try:
            weights = open_checkpoint(start.folder, start.name) if start else None
            trained = make_trained(data.base.checkpoint, data.base.geometry, self.recipe, weights)
            begin_tracking(accelerator, plan.name, {"recipe": self.config.recipe, **self.config.settings()})
            with stage(f"fine-tune {plan.name}", self.steps, "step") as told:
                how = Running(
                    accelerator,
                    data.preprocess,
                    data.base.projection,
                    StateFile(plan.state, asked),
                    self.config.validate_every,
                    self.config.save_minutes,
                    deadline,
                    told,
                )
                course = Training(trained, self.tasks, self.recipe, self.steps, how).run()
        finally:
            end_tracking(accelerator)
            accelerator.free_memory()
            gc.collect()  # accelerate's wrapped forward passes are cycles, which keep a tower on the GPU
        log.info("%s: %d steps in %.1f s", plan.name, course.steps, time.monotonic() - began)
        if course.steps < self.steps:
            return Expert(plan.name, plan.folder, None, course.steps, self.steps)
        names = [expert.name for expert in before]
        facts = {**facts_of(asked, data, self.config, course, names), **sizes_of(trained)}
        if self.workers.first:
            write_expert(
                plan.folder, trained, data.base.geometry, self.recipe, facts, self.ledger, self.config.overwrite
            )
            plan.state.unlink(missing_ok=True)
        self.workers.gather(None)
        return Expert(plan.name, plan.folder, facts, self.steps, self.steps)
