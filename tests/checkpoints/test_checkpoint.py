"""Whatever way a model is stored, the same tensors come out under the same names."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from clipfuse.checkpoints.checkpoint import Checkpoint, common_dtype, from_memory, open_checkpoint
from clipfuse.errors import CheckpointError

Tensors = dict[str, Tensor]


def bare(tensors: Tensors) -> Tensors:
    return dict(tensors)


def prefixed(tensors: Tensors) -> Tensors:
    return {f"vision_model.{name}": tensor for name, tensor in tensors.items()}


def with_position_ids(tensors: Tensors) -> Tensors:
    return prefixed({**tensors, "embeddings.position_ids": torch.arange(5).expand(1, -1).contiguous()})


def full_clip(tensors: Tensors) -> Tensors:
    elsewhere = ("text_model.embeddings.token_embedding.weight", "text_projection.weight", "visual_projection.weight")
    others = {name: torch.randn(4, 4) for name in elsewhere} | {"logit_scale": torch.tensor(2.6)}
    return others | with_position_ids(tensors) | {"text_model.encoder.layers.0.layer_norm1.weight": torch.ones(4)}


def single(tensors: Tensors, folder: Path) -> None:
    save_file(tensors, folder / "model.safetensors")


def sharded(tensors: Tensors, folder: Path) -> None:
    shard(tensors, folder, "model.safetensors", "model-{}-of-00003.safetensors", save_file)


def torch_bin(tensors: Tensors, folder: Path) -> None:
    torch.save(tensors, folder / "pytorch_model.bin")


def sharded_bin(tensors: Tensors, folder: Path) -> None:
    shard(tensors, folder, "pytorch_model.bin", "pytorch_model-{}-of-00003.bin", torch.save)


def shard(tensors: Tensors, folder: Path, index: str, pattern: str, save: Callable[[Tensors, Path], object]) -> None:
    names = list(tensors)
    weight_map = {name: pattern.format(f"{i % 3 + 1:05}") for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        save({name: tensors[name] for name in names if weight_map[name] == file}, folder / file)
    (folder / f"{index}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def assert_same(checkpoint: Checkpoint, tensors: Tensors) -> None:
    assert set(checkpoint) == set(tensors)
    for name, tensor in tensors.items():
        assert checkpoint[name].dtype == checkpoint.spec(name).dtype == tensor.dtype
        assert checkpoint.spec(name).shape == tuple(tensor.shape)
        assert torch.equal(checkpoint[name], tensor)
        checkpoint.release(name)
    assert checkpoint.nbytes == sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize("store", [single, sharded, torch_bin, sharded_bin])
@pytest.mark.parametrize("layout", [bare, prefixed, with_position_ids, full_clip])
def test_every_layout_gives_the_same_tensors(tmp_path: Path, weights: Tensors, layout: Callable, store: Callable):
    store(layout(weights), tmp_path)
    assert_same(open_checkpoint(tmp_path, "model"), weights)


@pytest.mark.parametrize("layout", [bare, prefixed, full_clip])
def test_tensors_in_memory(weights: Tensors, layout: Callable):
    tensors = layout(weights)
    checkpoint = from_memory(tensors, "model")
    assert_same(checkpoint, weights)
    assert all(checkpoint[name].data_ptr() == tensor.data_ptr() for name, tensor in weights.items())


def test_dtypes_are_kept(tmp_path: Path, weights: Tensors):
    dtypes = (torch.float16, torch.bfloat16, torch.float64)
    mixed = {name: tensor.to(dtypes[i % 3]) for i, (name, tensor) in enumerate(weights.items())}
    for folder, store in ((tmp_path / "a", single), (tmp_path / "b", torch_bin)):
        folder.mkdir()
        store(prefixed(mixed), folder)
        assert_same(open_checkpoint(folder, "model"), mixed)


def test_the_common_dtype_has_most_bytes(weights: Tensors):
    halved = {name: tensor.half() for name, tensor in weights.items()}
    assert common_dtype(from_memory(halved, "model")) is torch.float16
    largest = max(halved, key=lambda name: halved[name].numel())
    assert common_dtype(from_memory({**weights, largest: halved[largest]}, "model")) is torch.float32


def test_safetensors_are_preferred(tmp_path: Path, weights: Tensors):
    single(prefixed(weights), tmp_path)
    torch_bin(prefixed({name: tensor + 1 for name, tensor in weights.items()}), tmp_path)
    checkpoint = open_checkpoint(tmp_path, "model")
    assert_same(checkpoint, weights)
    assert checkpoint.files == (tmp_path / "model.safetensors",)


def test_one_weights_file(tmp_path: Path, weights: Tensors):
    save_file(prefixed(weights), tmp_path / "any name.safetensors")
    torch.save(prefixed(weights), tmp_path / "any name.pt")
    for name in ("any name.safetensors", "any name.pt"):
        assert_same(open_checkpoint(tmp_path / name, "model"), weights)


def test_all_shards_are_named(tmp_path: Path, weights: Tensors):
    sharded(full_clip(weights), tmp_path)
    names = sorted(file.name for file in open_checkpoint(tmp_path, "model").files)
    assert names == [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]


def test_a_shard_holds_only_what_the_index_says(tmp_path: Path, weights: Tensors):
    sharded(prefixed(weights), tmp_path)
    extra = tmp_path / "model-00001-of-00003.safetensors"
    save_file({**{n: t for n, t in prefixed(weights).items()}, "stranger": torch.ones(1)}, extra)
    assert_same(open_checkpoint(tmp_path, "model"), weights)


def test_reading_waits_until_asked_for(tmp_path: Path, weights: Tensors):
    """A file that is gone after opening is no matter: it is mapped, and small headers are all that was read."""
    single(prefixed(weights), tmp_path)
    checkpoint = open_checkpoint(tmp_path, "model")
    (tmp_path / "model.safetensors").unlink()
    assert_same(checkpoint, weights)


def test_modules_and_their_state_dicts_are_the_same(weights: Tensors):
    module = torch.nn.Module()
    module.embeddings = torch.nn.Linear(2, 2)
    checkpoint = from_memory(module, "model")
    assert set(checkpoint) == {"embeddings.weight", "embeddings.bias"}
    assert not checkpoint["embeddings.weight"].requires_grad
    assert from_memory(checkpoint, "again") is checkpoint


def test_what_is_no_tensor_is_named():
    with pytest.raises(CheckpointError, match=r"^expert: 'embeddings\.weight' is a list; a state dict holds tensors$"):
        from_memory({"embeddings.weight": [1.0, 2.0]}, "expert")
