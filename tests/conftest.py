"""Random models of a small geometry, as modules, folders and pools."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from clipfuse.checkpoints.geometry import Geometry
from clipfuse.pool import ModelPool, pool_from_memory

SMALL = Geometry(
    hidden_size=64, intermediate_size=1100, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8
)
"""Its MLP weights have 70,400 elements: more than one slice of 65,536."""
TASKS = ("digits", "signs", "roads")


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache; the tiny suite's pictures are drawn once a worker."""
    monkeypatch.setenv("CLIPFUSE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def vision_model(seed: int, geometry: Geometry = SMALL) -> CLIPVisionModel:
    torch.manual_seed(seed)
    return CLIPVisionModel(CLIPVisionConfig(**geometry.model_dump())).eval()


def random_models(correlation: float = 0.0, spread: float = 0.01) -> dict[str, dict[str, Tensor]]:
    """State dicts of a base and experts whose task vectors have about that cosine."""
    base = {name: tensor.clone() for name, tensor in vision_model(0).state_dict().items()}
    generator = torch.Generator().manual_seed(1)

    def noise() -> dict[str, Tensor]:
        return {n: torch.randn(t.shape, generator=generator) * spread for n, t in base.items()}

    common = noise()
    experts = {}
    for task in TASKS:
        own = noise()
        mix = correlation**0.5, (1 - correlation) ** 0.5
        experts[task] = {n: base[n] + mix[0] * common[n] + mix[1] * own[n] for n in base}
    return {"_pretrained_": base, **experts}


@pytest.fixture
def models() -> dict[str, dict[str, Tensor]]:
    return random_models()


@pytest.fixture
def pool(models: dict[str, dict[str, Tensor]]) -> ModelPool:
    found = pool_from_memory(models)
    found.geometry = SMALL
    return found


@pytest.fixture
def pool_yaml(tmp_path: Path, models: dict[str, dict[str, Tensor]]) -> Path:
    """A pool's YAML over folders in hub layout."""
    from safetensors.torch import save_file

    lines = ["type: huggingface_clip_vision", "models:"]
    for name, tensors in models.items():
        folder = tmp_path / "models" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(SMALL.to_config()))
        stored = {f"vision_model.{key}": value for key, value in tensors.items()}
        save_file(stored, folder / "model.safetensors", {"format": "pt"})
        lines += [f"  - name: {name}", f"    path: {folder}"]
    path = tmp_path / "pool.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path
