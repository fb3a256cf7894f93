"""Random models in the shape of a small CLIP vision tower: state dicts, made without transformers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from clipfuse.checkpoints.geometry import Geometry, parameter_shapes
from clipfuse.checkpoints.names import hub_name
from clipfuse.pool import PRETRAINED

StateDict = dict[str, Tensor]

SMALL = Geometry(
    hidden_size=64, intermediate_size=1550, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
)
"""Its MLP weights have 99,200 elements: more than one slice of 98,304."""

TASKS = ("digits", "signs", "roads")
"""Names of the experts; examples of settings that go by expert use them."""

WEIGHT = 0.05
"""Standard deviation of the base's weights."""


def random_models(
    correlation: float = 0.0, spread: float = 0.01, geometry: Geometry = SMALL, tasks: Sequence[str] = TASKS
) -> dict[str, StateDict]:
    """A base and experts by canonical names, float32; always the same ones.

    Args:
        correlation: About the cosine of two experts' task vectors, 0 to 1.
        spread: Standard deviation of a task vector's entries.
        geometry: Of the vision towers.
        tasks: Names of the experts.
    """
    generator = torch.Generator().manual_seed(1)
    shapes = parameter_shapes(geometry)

    def noise(scale: float) -> StateDict:
        return {name: torch.randn(shape, generator=generator) * scale for name, shape in shapes.items()}

    base = noise(WEIGHT)
    for name in shapes:
        if "norm" in name and name.endswith("weight"):
            base[name] += 1
    common = noise(spread * correlation**0.5)
    experts = {}
    for task in tasks:
        own = noise(spread * (1 - correlation) ** 0.5)
        experts[task] = {name: base[name] + common[name] + own[name] for name in base}
    return {PRETRAINED: base, **experts}


def write_models(models: Mapping[str, StateDict], folder: Path, geometry: Geometry = SMALL) -> dict[str, str]:
    """Write each model as a folder in the hub's layout; their paths by name."""
    for name, tensors in models.items():
        place = folder / name
        place.mkdir(parents=True)
        (place / "config.json").write_text(json.dumps(geometry.to_config()), encoding="utf-8")
        stored = {hub_name(key): tensor for key, tensor in tensors.items()}
        save_file(stored, place / "model.safetensors", {"format": "pt"})
    return {name: str(folder / name) for name in models}
