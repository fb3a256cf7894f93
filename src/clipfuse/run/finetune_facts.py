"""What a fine-tuning says of itself: all that its result depends on, and what came out."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import metadata
from math import isfinite
from pathlib import Path
from typing import Any

from clipfuse.checkpoints.hashes import compute_hash
from clipfuse.checkpoints.locate import locate
from clipfuse.errors import ModelError
from clipfuse.finetune.state import Course
from clipfuse.finetune.trained import Trained
from clipfuse.run.expert_folder import curve_of, val_of
from clipfuse.run.finetune_config import FinetuneConfig
from clipfuse.run.finetune_data import Data
from clipfuse.version import __version__

SCHEMA = 1


def key_of(asked: Mapping[str, Any]) -> str:
    """Digest of what was asked for."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def asked_of(
    tasks: Sequence[str], data: Data, config: FinetuneConfig, steps: int, processes: int, start: Path | None
) -> dict[str, Any]:
    """All that the result depends on; what only rounding depends on may change when it goes on.

    Masks of dropout are drawn for each forward pass, so with them the division of a batch counts, too.
    """
    but = set() if config.drops else {"micro_batch_size"}
    but.add("gradient_checkpointing")
    recipe = {key: value for key, value in config.settings().items() if key not in but}
    words = ("name", "split", "images", "classes", "fingerprint", "rows", "held_out", "val_images", "words")
    return {
        "kind": config.kind,
        "mode": config.mode,
        "tasks": [{word: data.facts[name][word] for word in words} for name in tasks],
        "base": data.base.identity,
        "start": None if start is None else compute_hash(start / "model.safetensors"),
        "recipe": recipe,
        "steps": steps,
        "processes": processes if config.drops else None,
        "validation": config.validation(),
    }


def facts_of(
    asked: Mapping[str, Any],
    data: Data,
    config: FinetuneConfig,
    course: Course,
    before: Sequence[str],
) -> dict[str, Any]:
    """What `finetune.json` says; nothing in it changes when the same training is done again."""
    at = locate(data.base.ref)
    base = {
        "path": data.base.ref,
        "revision": at.revision,
        "files": {file.name: compute_hash(file) for file in data.base.checkpoint.files},
        "identity": data.base.identity,
    }
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "accelerate")}
    return {
        "schema": SCHEMA,
        "clipfuse": __version__,
        "key": key_of(asked),
        "kind": asked["kind"],
        "mode": asked["mode"],
        "tasks": [data.facts[task["name"]] for task in asked["tasks"]],
        "base": base,
        "start": {"before": list(before), "sha256": asked["start"]} if before else None,
        "recipe": {"name": Path(config.recipe).stem, **config.settings()},
        "validation": config.validation(),
        "steps": asked["steps"],
        "val": val_of(course),
        "versions": versions,
        "curve": curve_of(course),
    }


def sizes_of(trained: Trained) -> dict[str, Any]:
    """How many parameters were trained of how many, and how far all of them moved."""
    squares = sum(float(tau.double().square().sum()) for tau in trained.moved().values())
    if not isfinite(squares):
        raise ModelError("the weights are not finite after the last step; a lower lr or max_grad_norm=1 may help")
    numbers = [sum(value.numel() for value in group.values()) for group in (trained.parameters, trained.start)]
    return {"parameters": dict(zip(("trained", "total"), numbers, strict=True)), "task_vector": {"norm": squares**0.5}}
