"""Pools of experts of different kinds: full weights and adapters merge alike, and what does not fit is said."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import clipfuse
from clipfuse.checkpoints.geometry import read_geometry
from clipfuse.errors import ModelError, PoolError
from clipfuse.pool import HuggingFaceClipVisionPool
from clipfuse.run.convert import convert
from tests.random_clip import write_random_clip
from tests.random_experts import random_deltas, write_expert


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, two experts in full weights, one of them as an adapter that holds all of it but its biases, and two
    linearised ones.
    """
    root = tmp_path_factory.mktemp("kinds")
    for seed, name in enumerate(("base", "a", "b")):
        write_random_clip(root / name, "small", seed)
    convert(str(root / "a"), root / "adapter", "lora", base=str(root / "base"), rank=16)
    for seed, name in enumerate(("linear", "linear2")):
        write_expert(root / name, root / "base", random_deltas(root / "base", seed))
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
        ({"a": "linearised"}, "a: kind is linearised in the pool, its files are full"),
        ({"linear": "full"}, "linear: kind is full in the pool, its files are linearised"),
        ({"linear": "lora"}, "linear: kind is lora in the pool, its files are linearised"),
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


@pytest.mark.parametrize("kind", [None, "linearised"])
def test_the_merge_of_linearised_experts_is_linearised(root: Path, kind: str | None):
    pool = pool_of(root, linear=kind, linear2=None)
    plain = read_geometry(root / "base")
    assert pool.weights.geometry == plain.model_copy(update={"linearised": True})
    assert pool.geometry("_pretrained_") == plain
    assert pool_of(root, a=None).weights.geometry == plain
    for form in (pool, {"_pretrained_": pool.open("_pretrained_"), "linear": pool.task_vector("linear")}):
        assert clipfuse.merge(form, "task_arithmetic").known_geometry.linearised


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("linear", "a", "linear2"), "^linear is linearised, a is not: a merge has one forward pass$"),
        (("b", "linear"), "^linear is linearised, b is not: a merge has one forward pass$"),
        (("linear", "adapter"), "^linear is linearised, adapter is not: a merge has one forward pass$"),
    ],
)
def test_a_merge_has_one_forward_pass(root: Path, names: tuple[str, ...], words: str):
    with pytest.raises(PoolError, match=words):
        _ = pool_of(root, **dict.fromkeys(names)).weights


def test_a_linearised_base_is_refused(root: Path):
    config = {"models": {"_pretrained_": str(root / "linear"), "linear2": str(root / "linear2")}}
    with pytest.raises(PoolError, match="^_pretrained_: is linearised; a base is what models are expanded around$"):
        _ = HuggingFaceClipVisionPool.from_tree(config).weights


def test_a_linearised_expert_is_no_vision_model_of_transformers(root: Path):
    pool = pool_of(root, linear=None)
    for load in (pool.load_model, pool.load_clip_model):
        with pytest.raises(ModelError, match="linear: is linearised, a CLIPVisionModel has another forward pass; .*"):
            load("linear")
    assert pool.load_model("_pretrained_").config.to_dict().get("linearised") is None
