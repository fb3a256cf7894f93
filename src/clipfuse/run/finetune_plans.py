"""Which models a fine-tuning makes, and where they go."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clipfuse.checkpoints.locate import PACKAGE, is_remote, local_path
from clipfuse.checkpoints.run_file import as_yaml
from clipfuse.checkpoints.writer import write_text
from clipfuse.config.read import read_yaml
from clipfuse.errors import ConfigError
from clipfuse.run.finetune_config import PUBLISHED, FinetuneConfig
from clipfuse.run.tasks import is_tiny
from clipfuse.tasks import Task

log = logging.getLogger(__name__)
TINY_BASE = "pkg://clipfuse/tiny/weights/base"
POOL = "modelpool.yaml"
OURS = "# Written by clipfuse finetune, which adds to it.\n"
"""Begins a pool's file that may be written again."""


@dataclass(frozen=True)
class Plan:
    """One model that is to be made."""

    name: str
    tasks: Sequence[str]
    folder: Path

    @property
    def state(self) -> Path:
        """Where its training can go on, beside its folder."""
        folder = self.folder.absolute()
        return folder.with_name(f"{folder.name}.state.safetensors")


def base_of(config: FinetuneConfig, tasks: Sequence[Task]) -> str:
    """The base that is fine-tuned, a local one by its whole path. Raises ConfigError where nobody names one."""
    named = config.base or (config.taskpool or {}).get("base")
    if named is None and all(map(is_tiny, tasks)):
        return TINY_BASE
    if not isinstance(named, str):
        raise ConfigError("base: is required, as in base=openai/clip-vit-base-patch32")
    here = named.startswith(PACKAGE) or is_remote(named)
    return named if here else str(local_path(named).absolute())


def make_plans(config: FinetuneConfig, tasks: Sequence[Task], base: str) -> list[Plan]:
    """The models that are to be made, in order. Raises ConfigError for the folder that one is in."""
    if config.out and Path(config.out).resolve() == Path.cwd():
        raise ConfigError("out: is the folder that you are in; name one inside, as in --out expert")
    names = [task.name for task in tasks]
    parts = [Path(base.rstrip("/").partition("@")[0]).name]
    parts += [Path(config.recipe).stem] if config.recipe != PUBLISHED else []
    parts += ["sequential"] if config.mode == "sequential" else []
    root = Path(config.out) if config.out else Path("experts", "_".join(parts))
    alone = "joint" if config.mode == "joint" else names[0] if isinstance(config.task, str) else None
    if alone and config.mode != "sequential":
        return [Plan(alone, names, root if config.out else root / alone)]
    return [Plan(name, [name], root / name) for name in names]


def write_pool(plans: Sequence[Plan], base: str) -> None:
    """Finished experts with their base as a pool's YAML beside them; those that are in it stay. Raises OutputError."""
    path = plans[0].folder.parent / POOL
    models = {"_pretrained_": base}
    if path.exists():
        if not path.read_text(encoding="utf-8").startswith(OURS):
            log.warning("%s: is not clipfuse's and stays as it is", path)
            return
        models |= {str(member["name"]): str(member["path"]) for member in read_yaml(path)["models"]}
        models["_pretrained_"] = base
    models |= {plan.name: str(plan.folder.absolute()) for plan in plans}
    members = [{"name": name, "path": where} for name, where in models.items()]
    write_text(path, OURS + as_yaml({"type": "huggingface_clip_vision", "models": members}))
