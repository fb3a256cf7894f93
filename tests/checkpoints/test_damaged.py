"""A zoo of damaged and hostile files: each is refused in one line that names the file, soon, and runs no code."""

import json
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from clipfuse.checkpoints.checkpoint import open_checkpoint
from clipfuse.errors import ClipfuseError

NAME = "vision_model.post_layernorm.weight"
ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 349220180\n"
)


def safetensors(header: object, size: int = 24, raw: bytes | None = None) -> bytes:
    """A file with any header (or its `raw` bytes) and `size` bytes of tensors."""
    raw = json.dumps(header).encode() if raw is None else raw
    return len(raw).to_bytes(8, "little") + raw + bytes(size)


def entry(**changes: object) -> bytes:
    return safetensors({NAME: ENTRY | changes})


def two(first: tuple[int, int], second: tuple[int, int], size: int) -> bytes:
    """Two tensors at any offsets."""
    spans = {NAME: first, NAME.replace("weight", "bias"): second}
    header = {
        name: {"dtype": "F32", "shape": [(end - start) // 4], "data_offsets": [start, end]}
        for name, (start, end) in spans.items()
    }
    return safetensors(header, size)


SOUND = safetensors({NAME: ENTRY})
SAFETENSORS = {
    "empty": b"",
    "cut in the length": SOUND[:5],
    "cut after the length": SOUND[:8],
    "cut in the header": SOUND[:40],
    "cut before the tensors": SOUND[:-24],
    "cut in the tensors": SOUND[:-13],
    "one byte short": SOUND[:-1],
    "one byte long": SOUND + b"\0",
    "header of no bytes": bytes(8),
    "header longer than the file": (1 << 40).to_bytes(8, "little") + SOUND[8:],
    "header of 2^64 - 1 bytes": b"\xff" * 8 + SOUND[8:],
    "git-lfs pointer": LFS_POINTER,
    "web page": b"<!doctype html><html><head><title>404</title></head></html>",
    "pickle": pickle.dumps({NAME: [1.0, 2.0]}),
    "not JSON": safetensors(None, raw=b"{'a': 1}"),
    "not UTF-8": safetensors(None, raw=b'{"\xff\xfe": 1}'),
    "a list": safetensors([ENTRY]),
    "nested too deep": safetensors(None, raw=b'{"a":' * 100_000),
    "key twice": safetensors(None, raw=f'{{"{NAME}": {json.dumps(ENTRY)}, "{NAME}": {json.dumps(ENTRY)}}}'.encode()),
    "overlapping": two((0, 24), (12, 36), 36),
    "the same bytes": two((0, 24), (0, 24), 24),
    "a hole": two((0, 24), (32, 56), 56),
    "not from the start": two((8, 16), (16, 24), 24),
    "end before start": entry(data_offsets=[24, 0]),
    "negative offset": entry(data_offsets=[-24, 0]),
    "offsets beyond the file": entry(shape=[1 << 20], data_offsets=[0, 4 << 20]),
    "three offsets": entry(data_offsets=[0, 12, 24]),
    "negative shape": entry(shape=[-2, -3]),
    "huge shape": entry(shape=[1 << 62, 1 << 62]),
    "huge shape times nothing": entry(shape=[1 << 62, 1 << 62], data_offsets=[0, 0]),
    "shape of fractions": entry(shape=[2.0, 3.0]),
    "shape of truths": entry(shape=[True, 6]),
    "shape is a word": entry(shape="23"),
    "no shape": safetensors({NAME: {"dtype": "F32", "data_offsets": [0, 24]}}),
    "unknown dtype": entry(dtype="F8_E4M3"),
    "dtype is a list": entry(dtype=["F32"]),
    "entry is a number": safetensors({NAME: 24}),
    "entry is null": safetensors({NAME: None}),
    "integers": entry(dtype="I32"),
    "truths": entry(dtype="BOOL", shape=[24]),
    "no tensors": safetensors({}, 0),
    "only metadata": safetensors({"__metadata__": {"format": "pt"}}, 0),
    "another model": safetensors({"model.layers.0.weight": ENTRY}),
}


class Attack:
    """What would run a command if it were unpickled."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch '{self.target}'",)


def saved(tree: Any, **options: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(tree, path, **options)


def cut(share: float) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        torch.save({NAME: torch.ones(9000)}, path)
        os.truncate(path, int(share * path.stat().st_size))

    return write


TORCH = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_bytes(LFS_POINTER),
    "cut at the end": cut(0.99),
    "cut in the middle": cut(0.5),
    "cut at the start": cut(0.01),
    "pickled command": lambda path: path.write_bytes(pickle.dumps({NAME: Attack(path.with_name("ran"))})),
    "zipped command": lambda path: torch.save({NAME: Attack(path.with_name("ran"))}, path),
    "old command": lambda path: torch.save({NAME: Attack(path.with_name("ran"))}, path, pickle, 2, False),
    "whole module": saved(torch.nn.Linear(2, 2)),
    "nested twice": saved({"a": {"state_dict": {NAME: torch.ones(3)}}}),
    "list": saved([torch.ones(3)]),
    "one tensor": saved(torch.ones(3)),
    "nothing": saved({}),
    "integers": saved({NAME: torch.arange(3)}),
    "complex": saved({NAME: torch.ones(3, dtype=torch.complex64)}),
    "sparse": saved({NAME: torch.eye(3).to_sparse()}),
    "on no device": saved({NAME: torch.ones(3, device="meta")}),
    "a terabyte of one number": saved({NAME: torch.ones(1).expand(1 << 38)}),
}

INDEX = {
    "empty": "",
    "not JSON": "{",
    "nested too deep": '{"a":' * 100_000,
    "a list": "[]",
    "no map": "{}",
    "map is a list": {"weight_map": [NAME]},
    "map is empty": {"weight_map": {}},
    "shard is a number": {"weight_map": {NAME: 1}},
    "shard is null": {"weight_map": {NAME: None}},
    "shard above": {"weight_map": {NAME: "../outside.safetensors"}},
    "shard below": {"weight_map": {NAME: "below/inside.safetensors"}},
    "shard from the root": {"weight_map": {NAME: "/etc/passwd"}},
    "shard is the folder above": {"weight_map": {NAME: ".."}},
    "shard absent": {"weight_map": {NAME: "absent.safetensors"}},
    "shard lacks a tensor": {"weight_map": {NAME: "sound.safetensors", "logit_scale": "sound.safetensors"}},
}


def sum_of_all(folder: Path) -> float:
    """Read every value there is."""
    return sum(float(tensor.sum()) for tensor in open_checkpoint(folder, "model").values())


def assert_refused(path: Path, mark: Path) -> str:
    """Opening and reading everything fails as it should; what is said."""
    began = time.perf_counter()
    with pytest.raises(ClipfuseError) as caught:
        sum_of_all(path.parent)
    said = str(caught.value)
    assert said.startswith(str(path)), said
    assert "\n" not in said
    assert time.perf_counter() - began < 5
    assert not mark.exists()
    return said


@pytest.mark.parametrize("raw", SAFETENSORS.values(), ids=SAFETENSORS)
def test_safetensors(tmp_path: Path, raw: bytes):
    (tmp_path / "model.safetensors").write_bytes(raw)
    assert_refused(tmp_path / "model.safetensors", tmp_path / "ran")


def test_the_sound_one_is_taken(tmp_path: Path):
    """Else everything above would be refused for another reason."""
    (tmp_path / "model.safetensors").write_bytes(SOUND)
    assert torch.equal(open_checkpoint(tmp_path, "model")["post_layernorm.weight"], torch.zeros(2, 3))


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's own, on the odd tensors that are written here
@pytest.mark.parametrize("write", TORCH.values(), ids=TORCH)
def test_torch(tmp_path: Path, write: Callable[[Path], None]):
    path = tmp_path / "pytorch_model.bin"
    write(path)
    assert_refused(path, tmp_path / "ran")


def test_the_attack_is_one(tmp_path: Path):
    """Unpickled by a reader that takes everything, the command runs."""
    pickle.loads(pickle.dumps(Attack(tmp_path / "ran")))  # noqa: S301
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("tree", INDEX.values(), ids=INDEX)
def test_index(tmp_path: Path, tree: object):
    folder = tmp_path / "model"
    (folder / "below").mkdir(parents=True)
    for path in (tmp_path / "outside", folder / "below" / "inside", folder / "sound"):
        path.with_suffix(".safetensors").write_bytes(SOUND)
    index = folder / "model.safetensors.index.json"
    index.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    if isinstance(tree, dict) and "logit_scale" in tree.get("weight_map", {}):
        index = folder / "sound.safetensors"
    assert_refused(index, tmp_path / "ran")


def test_no_weights(tmp_path: Path, model_folder: Path):
    (model_folder / "model.safetensors").unlink()
    (model_folder / "model.safetensors").symlink_to("gone")
    with pytest.raises(ClipfuseError, match=r"model: holds no weights; looked for model\.safetensors, "):
        open_checkpoint(model_folder, "model")


def test_a_sound_name_with_damaged_neighbours(model_folder: Path, weights: dict[str, Tensor]):
    """What is not needed is not looked at."""
    (model_folder / "pytorch_model.bin").write_bytes(b"damaged")
    (model_folder / "model.safetensors.index.json").write_text("damaged")
    assert set(open_checkpoint(model_folder, "model")) == set(weights)


def test_damage_is_found_in_any_shard(tmp_path: Path, weights: dict[str, Tensor]):
    names = [f"vision_model.{name}" for name in weights]
    weight_map = {name: f"{i % 2}.safetensors" for i, name in enumerate(names)}
    for file in ("0.safetensors", "1.safetensors"):
        save_file({name: torch.ones(2) for name in names if weight_map[name] == file}, tmp_path / file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    os.truncate(tmp_path / "1.safetensors", (tmp_path / "1.safetensors").stat().st_size - 1)
    with pytest.raises(ClipfuseError, match=r"/1\.safetensors: truncated: "):
        open_checkpoint(tmp_path, "model")
