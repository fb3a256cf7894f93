"""Pools: leaves, task vectors, and the class that people import."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import clipfuse
from clipfuse.errors import CheckpointError, OutputError, PoolError
from clipfuse.pool import HuggingFaceClipVisionPool


@pytest.fixture
def pool(pool_yaml: Path) -> HuggingFaceClipVisionPool:
    return HuggingFaceClipVisionPool.from_yaml(pool_yaml)


def test_leaves_are_sorted_and_whole(pool: HuggingFaceClipVisionPool, models):
    names = []
    for leaf in pool:
        names.append(leaf.name)
        base = models["_pretrained_"][leaf.name]
        assert torch.equal(leaf.base, base)
        for task, expert, delta in zip(leaf.tasks, leaf.experts, leaf.deltas, strict=True):
            assert torch.equal(expert, models[task][leaf.name])
            assert torch.equal(delta, models[task][leaf.name] - base)
    assert names == sorted(models["_pretrained_"])


def test_task_vectors_calculate(pool: HuggingFaceClipVisionPool, models, tmp_path: Path):
    signs, roads = pool.task_vector("signs"), pool.task_vector("roads")
    for name, tensor in ((signs - 2.0 * roads) + -signs).tensors.items():
        torch.testing.assert_close(tensor, -2 * roads.tensors[name], atol=1e-7, rtol=0)
    flat = torch.cat([(models["signs"][n] - models["_pretrained_"][n]).double().flatten() for n in models["signs"]])
    assert signs.norm() == pytest.approx(float(flat.norm()))
    signs.save(tmp_path / "tau.safetensors")
    saved = load_file(tmp_path / "tau.safetensors")
    assert all(torch.equal(saved[name], tensor) for name, tensor in signs.tensors.items())
    with pytest.raises(OutputError, match="exists"):
        signs.save(tmp_path / "tau.safetensors")
    with pytest.raises(PoolError, match="different models"):
        signs + type(signs)({"x": torch.zeros(1)})


def test_a_pool_without_a_base(pool_yaml: Path):
    lines = pool_yaml.read_text().splitlines()
    pool_yaml.write_text("\n".join(lines[:2] + lines[4:]))
    pool = HuggingFaceClipVisionPool.from_yaml(pool_yaml)
    assert not pool.has_pretrained
    assert len(clipfuse.merge(pool, "simple_average").tensors) == 39
    assert pool.load_pretrained_or_first_model().config.hidden_size == 64
    for act in (pool.load_pretrained_model, lambda: pool.task_vector("signs")):
        with pytest.raises(PoolError, match="no _pretrained_"):
            act()
    with pytest.raises(PoolError, match="no _pretrained_ model, so there is no base"):
        _ = next(iter(pool)).deltas


def test_configuration_is_what_the_file_says(pool: HuggingFaceClipVisionPool):
    assert pool.model_names == ("digits", "signs", "roads")
    assert pool.get_model_config("signs").path.endswith("models/signs")
    assert "roads" in pool
    assert "cars" not in pool
    assert len(pool) == 3
    with pytest.raises(PoolError, match="did you mean 'roads'"):
        pool.get_model_config("road")


def test_integers_in_an_expert_are_told_with_its_name_and_the_tensor(tmp_path: Path):
    members = []
    for name, value in (("_pretrained_", torch.zeros(3)), ("signs", torch.arange(3))):
        (tmp_path / name).mkdir()
        save_file({"vision_model.post_layernorm.bias": value}, tmp_path / name / "model.safetensors")
        members.append({"name": name, "path": str(tmp_path / name)})
    pool = HuggingFaceClipVisionPool.from_tree({"type": "huggingface_clip_vision", "models": members})
    with pytest.raises(CheckpointError, match=r"^signs: .*post_layernorm\.bias.*int64"):
        _ = pool.weights
