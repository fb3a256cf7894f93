"""A random vision encoder by canonical name, and folders that hold it in any layout."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from clipfuse.checkpoints.geometry import Geometry

GEOMETRY = Geometry(
    hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
)


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """Every parameter of a small vision encoder, float32."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPVisionModel(CLIPVisionConfig(**GEOMETRY.model_dump()))
    return {name.removeprefix("vision_model."): tensor for name, tensor in model.state_dict().items()}


@pytest.fixture
def model_folder(tmp_path: Path, weights: dict[str, Tensor]) -> Path:
    """A sound folder as the hub has it: config.json and model.safetensors under `vision_model.` names."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(GEOMETRY.to_config()))
    save_file(prefixed(weights), folder / "model.safetensors", {"format": "pt"})
    return folder


def prefixed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"vision_model.{name}": tensor for name, tensor in tensors.items()}
