"""What is written of an adapter: peft's and FusionBench's names, bit for bit what was given, and read back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from clipfuse.checkpoints.adapter_files import write_adapter
from clipfuse.checkpoints.checkpoint import from_memory, open_checkpoint
from clipfuse.checkpoints.lora import read_adapter_config
from clipfuse.checkpoints.lora_store import LoraStore

QUERY = "encoder.layers.0.self_attn.q_proj", "encoder.layers.1.self_attn.q_proj"
OPTIONS: dict[str, Any] = {"rank": 3, "alpha": 6, "dropout": 0.1, "targets": ["q_proj"], "base_ref": "org/clip"}


def factors(seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Of both layers' queries, the later one first."""
    random = torch.Generator().manual_seed(seed)
    return {name: (torch.randn(3, 8, generator=random), torch.randn(8, 3, generator=random)) for name in QUERY[::-1]}


def test_a_plain_adapter(tmp_path: Path, weights: dict[str, Tensor]):
    given = factors(0)
    write_adapter(tmp_path, given, **OPTIONS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert sorted(stored) == [f"base_model.model.{name}.lora_{part}.weight" for name in QUERY for part in "AB"]
    found = open_checkpoint(tmp_path, "a", from_memory(weights, "base"))
    assert set(found) == {f"{name}.weight" for name in QUERY}
    for name, (a, b) in given.items():
        assert torch.equal(stored[f"base_model.model.{name}.lora_A.weight"], a)
        assert torch.equal(stored[f"base_model.model.{name}.lora_B.weight"], b)
        torch.testing.assert_close(found[f"{name}.weight"], 2 * b @ a)


def test_the_configuration(tmp_path: Path):
    write_adapter(tmp_path, factors(0), **{**OPTIONS, "targets": ("q_proj", "q_proj")})
    tree = json.loads((tmp_path / "adapter_config.json").read_text())
    assert tree == {
        "peft_type": "LORA",
        "base_model_name_or_path": "org/clip",
        "r": 3,
        "lora_alpha": 6,
        "lora_dropout": 0.1,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": ["q_proj"],
        "task_type": None,
    }
    write_adapter(tmp_path, factors(0), **OPTIONS, revision="a" * 40)
    config = read_adapter_config(tmp_path)
    assert (config.kind, config.base_model_name_or_path, config.revision) == ("lora", "org/clip", "a" * 40)
    assert config.scaling(QUERY[0]) == 2.0


@pytest.mark.parametrize("b0", [0.0, 1.0])
def test_a_linearised_adapter(tmp_path: Path, weights: dict[str, Tensor], b0: float):
    given = factors(0)
    initial = {name: (a, b0 * b) for name, (a, b) in factors(1).items()}
    write_adapter(tmp_path, given, **OPTIONS, initial=initial)
    stored = load_file(tmp_path / "linearized_adapter_model.safetensors")
    parts = ("model.lora_A.default.weight", "model.lora_B.default.weight", "params0_values.2", "params0_values.3")
    assert sorted(stored) == [f"base_model.model.{name}.{part}" for name in QUERY for part in parts]
    assert not (tmp_path / "adapter_model.safetensors").exists()
    assert read_adapter_config(tmp_path).kind == "linearised-lora"
    found = open_checkpoint(tmp_path, "a", from_memory(weights, "base"))
    for name, (a, b) in given.items():
        a0, b0_ = initial[name]
        assert torch.equal(stored[f"base_model.model.{name}.params0_values.2"], a0)
        torch.testing.assert_close(found[f"{name}.weight"], 2 * (b @ a0 + b0_ @ (a - a0)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("linearised", [False, True])
def test_half_precision(tmp_path: Path, weights: dict[str, Tensor], linearised: bool):
    given = factors(0)
    before = {name: (a, torch.zeros_like(b)) for name, (a, b) in given.items()}
    write_adapter(tmp_path, given, **OPTIONS, initial=before if linearised else None, dtype=torch.bfloat16)
    found = open_checkpoint(tmp_path, "a", from_memory(weights, "base"))
    store = found.places[f"{QUERY[0]}.weight"][0]
    assert isinstance(store, LoraStore)
    a, b = (part.bfloat16().float() for part in given[QUERY[0]])
    pair = store.factors(f"{QUERY[0]}.weight")
    assert pair is not None
    assert torch.equal(pair[0], 2 * b)
    assert torch.equal(pair[1], a)
