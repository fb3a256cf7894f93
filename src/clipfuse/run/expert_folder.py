"""The folder of an expert: weights or adapter, configuration, card, provenance and curves."""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from clipfuse.checkpoints.adapter_files import write_adapter
from clipfuse.checkpoints.expert_card import expert_card
from clipfuse.checkpoints.expert_facts import FACTS
from clipfuse.checkpoints.geometry import Geometry
from clipfuse.checkpoints.ledger import Ledger
from clipfuse.checkpoints.names import hub_name
from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.checkpoints.writer import SafetensorsWriter, new_folder, write_text
from clipfuse.finetune.recipe import Recipe
from clipfuse.finetune.state import Course
from clipfuse.finetune.trained import Trained
from clipfuse.report.curve_picture import curve_picture

POINTS = 200
"""Most points of a loss curve; each is the mean of as many steps as lie between two."""


def write_expert(
    folder: Path,
    trained: Trained,
    geometry: Geometry,
    recipe: Recipe,
    facts: Mapping[str, Any],
    ledger: Ledger,
    overwrite: bool,
) -> None:
    """Write an expert, whole or not at all: the same training gives the same files. Raises OutputError."""
    curve = facts["curve"]
    with new_folder(folder, overwrite) as temporary:
        if trained.layers:
            base = facts["base"]
            write_adapter(
                temporary,
                {name: (layer.A.detach().cpu(), layer.B.detach().cpu()) for name, layer in trained.layers.items()},
                rank=recipe.rank,
                alpha=recipe.lora_alpha,
                dropout=recipe.lora_dropout,
                targets=recipe.target_modules,
                base_ref=base["path"],
                revision=base["revision"],
                initial=dict(trained.initial) or None,
                dtype=getattr(torch, recipe.dtype),
            )
        else:
            write_tower(temporary, trained, geometry, getattr(torch, recipe.dtype))
        write_text(temporary / FACTS, json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        write_text(temporary / "README.md", expert_card(facts))
        title = f"{', '.join(task['name'] for task in facts['tasks'])}: {facts['recipe']['name']}"
        write_text(temporary / "curves.svg", curve_picture(title, curve["loss"], curve["accuracy"]))
        ledger.write(temporary)


def write_tower(folder: Path, trained: Trained, geometry: Geometry, dtype: torch.dtype) -> None:
    """Full weights under the hub's names."""
    weights = trained.weights()
    geometry = geometry.model_copy(update={"linearised": trained.linearised})
    config = {**geometry.to_config(), "dtype": "float32"}  # to compute in, whatever the file has
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    specs = {hub_name(name): TensorSpec(tuple(weights[name].shape), dtype) for name in sorted(weights)}
    with SafetensorsWriter(folder / "model.safetensors", specs) as writer:
        for name, value in weights.items():
            writer.write(hub_name(name), value.to(dtype))


def curve_of(course: Course) -> dict[str, Any]:
    """The course of a training as points: mean losses between (step, nats), and accuracies (step, share) by task."""
    steps = course.steps
    stretch = max(1, -(-steps // POINTS))
    ends = [min(start + stretch, steps) for start in range(0, steps, stretch)]
    loss = [[end, round(fmean(course.losses[max(0, end - stretch) : end]), 6)] for end in ends]
    accuracy: dict[str, list[list[float]]] = {}
    for found in course.val:
        accuracy.setdefault(found["task"], []).append([found["step"], found["correct"] / found["n"]])
    return {"loss": loss, "accuracy": accuracy}


def val_of(course: Course) -> dict[str, Any]:
    """Task → what validation found before the first step and after the last one."""
    found: dict[str, Any] = {}
    for entry in course.val:
        accuracy, loss = entry["correct"] / entry["n"], entry["loss"]
        first = found.setdefault(entry["task"], {"n": entry["n"], "before": accuracy, "loss_before": loss})
        first |= {"after": accuracy, "loss_after": loss}
    return found
