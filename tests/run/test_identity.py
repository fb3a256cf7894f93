"""What a model is, and what is wrong with it."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipfuse.errors import ModelError
from clipfuse.run.convert import convert
from clipfuse.run.identity import describe
from tests.random_clip import write_random_clip

Change = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small full CLIP: the base."""
    folder = tmp_path_factory.mktemp("clip") / "base"
    write_random_clip(folder, "small")
    return folder


def expert(clip: Path, folder: Path, change: Change, **config: Any) -> str:
    """A vision tower made from the base's."""
    convert(str(clip), folder, "hf")
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return str(folder)


def moved(tensors: dict[str, Tensor], by: float = 0.001) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    return {name: value + by * torch.randn(value.shape, generator=random) for name, value in tensors.items()}


def broken(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return tensors | {"vision_model.post_layernorm.bias": torch.full((16,), torch.nan)}


def test_an_expert_has_no_warnings_and_is_not_read_unless_asked(clip: Path, tmp_path: Path):
    model = expert(clip, tmp_path / "expert", moved)
    facts = describe(model, base=str(clip))
    assert "warnings" not in facts
    assert facts["family"] == "transformers CLIPVisionModel"
    assert facts["activation"] == "quick_gelu"
    deep = describe(model, deep=True, base=str(clip))
    assert deep["warnings"] == []
    tau = load_file(tmp_path / "expert/model.safetensors")
    zero = load_file(clip / "model.safetensors")
    norms = [sum(float(v.double().square().sum()) for v in side) for side in
             ((tau[n] - zero[n] for n in tau), (zero[n] for n in tau))]  # fmt: skip
    assert deep["norm of the task vector ÷ the base's"] == pytest.approx((norms[0] / norms[1]) ** 0.5, rel=1e-6)
    assert all(len(file["sha256"]) == 64 for file in deep["files"])


@pytest.mark.parametrize(
    ("change", "config", "words"),
    [
        (lambda t: t, {}, "its task vector is zero"),
        (broken, {}, "NaN or Inf in 1 parameters, e.g. post_layernorm.bias"),
        (lambda t: moved(t, 1.0), {}, "is no fine-tuned .*base: its task vector is"),
        (lambda t: {n: v.bfloat16() for n, v in moved(t).items()}, {}, "stored in bfloat16"),
        (moved, {"hidden_act": "gelu"}, r"says gelu, the base's quick_gelu; .* quick_gelu is the likelier"),
    ],
)
def test_defects_are_named(clip: Path, tmp_path: Path, change: Change, config: dict[str, Any], words: str):
    facts = describe(expert(clip, tmp_path / "expert", change, **config), deep=True, base=str(clip))
    (warning,) = facts["warnings"]
    assert re.search(words, warning), warning


def test_families(clip: Path, tmp_path: Path):
    assert describe(str(clip))["family"] == "transformers CLIPModel"
    convert(str(clip), tmp_path / "openclip", "openclip")
    assert describe(str(tmp_path / "openclip"))["family"] == "OpenAI's or OpenCLIP's state dict"
    model = expert(clip, tmp_path / "expert", moved)
    convert(model, tmp_path / "lora", "lora", base=str(clip), rank=4)
    facts = describe(str(tmp_path / "lora"), deep=True)
    assert facts["family"] == "LoRA adapter (peft)"
    assert facts["base"] == str(clip), "the adapter names it"
    state = load_file(tmp_path / "openclip/open_clip_model.safetensors")
    torch.save({f"model.{name}": value for name, value in state.items()}, tmp_path / "nonlinear_finetuned.pt")
    folder = tmp_path / "DTDVal"
    folder.mkdir()
    shutil.move(tmp_path / "nonlinear_finetuned.pt", folder)
    tall = describe(str(folder / "nonlinear_finetuned.pt"), deep=True, base=str(clip))
    assert "20-task" in tall["family"]
    assert any("before December 2024" in warning for warning in tall["warnings"])


def test_an_adapter_that_adds_nothing_is_named(clip: Path, tmp_path: Path):
    convert(expert(clip, tmp_path / "expert", moved), tmp_path / "lora", "lora", base=str(clip), rank=2)
    path = tmp_path / "lora/adapter_model.safetensors"
    tensors = load_file(path)
    save_file({n: torch.zeros_like(v) if "lora_B" in n else v for n, v in tensors.items()}, path)
    warnings = describe(str(tmp_path / "lora"), deep=True)["warnings"]
    assert any("modules of the adapter add nothing" in warning for warning in warnings)


def test_without_its_base_a_model_is_not_compared(clip: Path, tmp_path: Path):
    facts = describe(expert(clip, tmp_path / "expert", moved), deep=True)
    assert "the base is not at hand" in facts["warnings"][0]
    assert facts["norm of the task vector ÷ the base's"] is None
    write_random_clip(tmp_path / "other", "smaller")
    with pytest.raises(ModelError, match="its base"):
        describe(str(tmp_path / "expert"), deep=True, base=str(tmp_path / "other"))
