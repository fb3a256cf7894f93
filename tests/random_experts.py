"""Experts of a base with random task vectors, linearised or not, in Hugging Face folders."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from clipfuse.checkpoints.checkpoint import open_checkpoint
from clipfuse.checkpoints.geometry import read_geometry
from clipfuse.checkpoints.names import hub_name


def random_deltas(base: Path, seed: int, part: str = "", size: float = 0.05) -> dict[str, Tensor]:
    """A task vector by canonical name, of the parameters that have `part` in their names."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tensor.shape for name, tensor in open_checkpoint(base, "base").items()}
    return {name: size * torch.randn(shapes[name], generator=generator) for name in sorted(shapes) if part in name}


def write_expert(folder: Path, base: Path, deltas: Mapping[str, Tensor], linearised: bool = True) -> Path:
    """θ0 + τ as a folder."""
    folder.mkdir(parents=True)
    weights = open_checkpoint(base, "base")
    moved = {name: weights[name] + deltas[name] if name in deltas else weights[name].clone() for name in weights}
    save_file({hub_name(name): value for name, value in moved.items()}, folder / "model.safetensors")
    config = read_geometry(base).model_copy(update={"linearised": linearised}).to_config()
    (folder / "config.json").write_text(json.dumps(config))
    return folder
