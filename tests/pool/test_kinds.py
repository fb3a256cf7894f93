"""Pools of experts of different kinds: full weights and adapters merge alike, and what does not fit is said."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import clipfuse
from clipfuse.errors import PoolError
from clipfuse.pool import HuggingFaceClipVisionPool
from clipfuse.run.convert import convert
from tests.random_clip import write_random_clip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two experts in full weights, and one of them as an adapter that holds all of it but its biases."""
    root = tmp_path_factory.mktemp("kinds")
    for seed, name in enumerate(("base", "a", "b")):
        write_random_clip(root / name, "small", seed)
    convert(str(root / "a"), root / "adapter", "lora", base=str(root / "base"), rank=16)
    return root


def pool_of(root: Path, **kinds: str | None) -> HuggingFaceClipVisionPool:
    members = [{"name": "_pretrained_", "path": str(root / "base")}]
    members += [{"name": n, "path": str(root / n)} | ({"kind": kind} if kind else {}) for n, kind in kinds.items()]
    return HuggingFaceClipVisionPool.from_tree({"models": members})


def test_an_adapter_merges_as_what_it_applies_to(root: Path):
    pool = pool_of(root, adapter="lora", b="full")
    applied = pool.full("adapter")
    merged = clipfuse.merge(pool, "task_arithmetic", scaling_factor=0.3)
    base, b = pool.open("_pretrained_"), pool.open("b")
    for name in base:
        wanted = base[name] + 0.3 * (applied[name] - base[name]) + 0.3 * (b[name] - base[name])
        torch.testing.assert_close(merged.tensors[name], wanted, rtol=1e-5, atol=1e-6)
    expert = pool.load_model("adapter").state_dict()
    assert torch.equal(expert["encoder.layers.0.mlp.fc1.weight"], applied["encoder.layers.0.mlp.fc1.weight"])
    assert pool.geometry("adapter") == pool.geometry("_pretrained_")


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ({"adapter": "full"}, "kind is full in the pool, its files are lora"),
        ({"a": "lora"}, "kind is lora in the pool, its files are full"),
        ({"a": "linearised"}, "linearised models have a forward pass of their own"),
    ],
)
def test_a_kind_that_is_not_the_files(root: Path, kinds: dict[str, str], words: str):
    with pytest.raises(PoolError, match=words):
        _ = pool_of(root, **kinds).weights


def test_an_adapter_of_another_base_is_named(root: Path):
    config = {"models": {"_pretrained_": str(root / "b"), "adapter": str(root / "adapter")}}
    (warning,) = HuggingFaceClipVisionPool.from_tree(config).weights.warnings
    assert "adapter: is an adapter of" in warning
    assert not pool_of(root, adapter=None).weights.warnings


def test_a_full_clip_with_an_experts_own_projection(root: Path):
    clip = pool_of(root, a=None).load_clip_model("a")
    assert torch.equal(
        clip.visual_projection.weight, load_file(root / "a/model.safetensors")["visual_projection.weight"]
    )
