"""`finetune`: tasks, a base and a recipe → experts, each in a folder that is ready to be a pool's member."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipfuse.checkpoints.checkpoint import open_checkpoint
from clipfuse.checkpoints.expert_facts import read_facts
from clipfuse.checkpoints.ledger import Ledger, keep_ledger
from clipfuse.checkpoints.run_file import as_yaml
from clipfuse.checkpoints.writer import check_output, write_text
from clipfuse.config import parse
from clipfuse.errors import ConfigError, OutputError
from clipfuse.evaluate.workers import Workers, find_workers
from clipfuse.finetune.recipe import Recipe
from clipfuse.finetune.runtime import begin_tracking, check_trackers, end_tracking, make_accelerator
from clipfuse.finetune.state import StateFile
from clipfuse.finetune.train import Running, Training
from clipfuse.finetune.trained import make_trained
from clipfuse.run.bench import as_device
from clipfuse.run.expert_folder import write_expert
from clipfuse.run.finetune_config import PUBLISHED, FinetuneConfig, finetune_config
from clipfuse.run.finetune_data import Data, open_data
from clipfuse.run.finetune_facts import asked_of, facts_of, key_of, sizes_of
from clipfuse.run.progress import Stage, silent
from clipfuse.run.tasks import find_tasks, is_tiny
from clipfuse.tasks import Task, TaskPoolConfig

log = logging.getLogger(__name__)
TINY_BASE = "pkg://clipfuse/tiny/weights/base"


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


@dataclass(frozen=True)
class Plan:
    """One model that is to be made."""

    name: str
    tasks: Sequence[str]
    folder: Path

    @property
    def state(self) -> Path:
        """Where its training can go on, beside its folder."""
        return self.folder.with_name(f"{self.folder.name}.state.safetensors")


def fine_tune(stage: Stage = silent, **settings: Any) -> list[Expert]:
    """Fine-tune a CLIP's vision encoder; see `FinetuneConfig` for the settings.

    Examples:
        >>> fine_tune(task="gtsrb", base="openai/clip-vit-base-patch32", out="experts/gtsrb")  # doctest: +SKIP
    """
    return finetune(settings, stage)


def finetune(tree: Mapping[str, Any], stage: Stage = silent) -> list[Expert]:
    """Fine-tune what a tree with the keys of `FinetuneConfig` says. Experts that are there are not made again.

    Raises:
        ClipfuseError: one line; what was trained so far is in the state file that it names.
        KeyboardInterrupt: ^C or SIGTERM; the same call goes on.
    """
    config = finetune_config(tree)
    deadline = time.monotonic() + 60 * config.max_minutes if config.max_minutes else None
    check_trackers(config.trackers)
    workers = find_workers(config.device)
    tasks = find_tasks(parse(TaskPoolConfig, config.taskpool or {"tasks": names_of(config)}, "taskpool"))
    base = base_of(config, tasks)
    plans = make_plans(config, tasks, base)
    for plan in plans:
        if config.overwrite or read_facts(plan.folder) is None:
            check_output(plan.folder, config.overwrite)
    with keep_ledger(config.locked) as ledger:
        data = open_data(tasks, base, config, workers, stage)
        found: list[Expert] = []
        for plan in plans:
            before = found if config.mode == "sequential" else []
            found.append(make_expert(plan, data, config, workers, ledger, before, deadline, stage))
            if found[-1].facts is None:  # time is up
                break
    if len(plans) > 1 and workers.first:
        write_pool(plans, base)
    return found


def names_of(config: FinetuneConfig) -> list[str]:
    return [config.task] if isinstance(config.task, str) else list(config.task or ())


def base_of(config: FinetuneConfig, tasks: Sequence[Task]) -> str:
    """The base that is fine-tuned. Raises ConfigError where nobody names one."""
    named = config.base or (config.taskpool or {}).get("base")
    if named is None and all(map(is_tiny, tasks)):
        return TINY_BASE
    if not isinstance(named, str):
        raise ConfigError("base: is required, as in base=openai/clip-vit-base-patch32")
    return named


def make_plans(config: FinetuneConfig, tasks: Sequence[Task], base: str) -> list[Plan]:
    """The models that are to be made, in order."""
    names = [task.name for task in tasks]
    parts = [Path(base.rstrip("/").partition("@")[0]).name]
    parts += [Path(config.recipe).stem] if config.recipe != PUBLISHED else []
    root = Path("experts", "_".join(parts))
    if config.mode == "joint":
        return [Plan("joint", names, Path(config.out) if config.out else root / "joint")]
    if isinstance(config.task, str) and config.mode == "separate":
        return [Plan(names[0], names, Path(config.out) if config.out else root / names[0])]
    root = (
        Path(config.out)
        if config.out
        else root.with_name(f"{root.name}_sequential")
        if config.mode == "sequential"
        else root
    )
    return [Plan(name, [name], root / name) for name in names]


def make_expert(
    plan: Plan,
    data: Data,
    config: FinetuneConfig,
    workers: Workers,
    ledger: Ledger,
    before: Sequence[Expert],
    deadline: float | None,
    stage: Stage,
) -> Expert:
    """Train one model and write its folder, or find it there. Raises ClipfuseError."""
    recipe = Recipe.model_validate({name: getattr(config, name) for name in Recipe.model_fields})
    tasks = [data.tasks[name] for name in plan.tasks]
    steps = recipe.steps_of({task.name: len(task.train) for task in tasks})
    start = before[-1] if before else None
    asked = asked_of(plan.tasks, data, config, steps, start and start.folder)
    there = read_facts(plan.folder)
    if there and there["key"] == key_of(asked):
        return Expert(plan.name, plan.folder, there, steps, steps, kept=True)
    if there and not config.overwrite:
        raise OutputError(f"{plan.folder}: holds another expert; choose another --out or pass --overwrite")
    state = StateFile(plan.state, asked)
    if config.overwrite and workers.first:
        plan.state.unlink(missing_ok=True)
    workers.gather(None)
    if len(set(workers.gather(state.check()))) > 1:
        raise OutputError(f"{plan.state}: is not the same for all processes; they must share the file system")
    accelerator = make_accelerator(
        workers.device or as_device(config.device), recipe.precision, config.trackers, plan.folder.parent / "logs"
    )
    trained = make_trained(
        data.base.checkpoint, data.base.geometry, recipe, open_checkpoint(start.folder, start.name) if start else None
    )
    begin_tracking(accelerator, plan.name, {"recipe": config.recipe, **recipe.model_dump(mode="json")})
    began = time.monotonic()
    with stage(f"fine-tune {plan.name}", steps, "step") as told:
        how = Running(
            accelerator,
            data.preprocess,
            data.base.projection,
            state,
            config.validate_every,
            config.save_minutes,
            deadline,
            told,
        )
        course = Training(trained, tasks, recipe, steps, how).run()
    end_tracking(accelerator)
    log.info("%s: %d steps in %.1f s", plan.name, course.steps, time.monotonic() - began)
    if course.steps < steps:
        return Expert(plan.name, plan.folder, None, course.steps, steps)
    facts = {**facts_of(asked, data, config, course, [expert.name for expert in before]), **sizes_of(trained)}
    if workers.first:
        write_expert(plan.folder, trained, data.base.geometry, recipe, facts, ledger, config.overwrite)
        plan.state.unlink(missing_ok=True)
    workers.gather(None)
    return Expert(plan.name, plan.folder, facts, steps, steps)


def write_pool(plans: Sequence[Plan], base: str) -> None:
    """The experts with their base as a pool's YAML, beside them. Raises OutputError."""
    models = [{"name": "_pretrained_", "path": base}]
    models += [{"name": plan.name, "path": str(plan.folder)} for plan in plans]
    tree = {"type": "huggingface_clip_vision", "models": models}
    write_text(plans[0].folder.parent / "modelpool.yaml", as_yaml(tree))
