"""Slices copied from files into a thread's room: the same as slices of the mapped file; files that change meanwhile."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from clipfuse.checkpoints.checkpoint import Checkpoint, MemoryStore
from clipfuse.checkpoints.safetensors_file import SafetensorsFile
from clipfuse.errors import CheckpointError
from clipfuse.pool import ModelPool
from clipfuse.pool.room import Room

SIZE = 700
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def stored(folder: Path, name: str, dtype: torch.dtype, is_delta: bool = False, lacks: bool = False) -> Checkpoint:
    generator = torch.Generator().manual_seed(len(name))
    tensors = {key: torch.randn(30, 50, generator=generator).to(dtype) for key in ("w", "v")[: 2 - lacks]}
    save_file(tensors, folder / f"{name}.safetensors")
    file = SafetensorsFile(folder / f"{name}.safetensors")
    return Checkpoint({key: (file, key) for key in file.specs}, name, is_delta=is_delta)


def alike(pool: ModelPool) -> None:
    """Leaves in a room are those without one, slice after slice."""
    room = Room(pool.checkpoints, len(pool), SIZE, "cpu")
    for name in pool.specs:
        for start in (0, 700, 1400):
            stop = min(start + SIZE, 1500)
            plain, roomy = pool.leaf(name, start, stop), pool.leaf(name, start, stop, room=room)
            assert torch.equal(roomy.experts, plain.experts)
            assert torch.equal(roomy.deltas, plain.deltas)
            assert torch.equal(roomy.base, plain.base)
            for found, expected in zip(roomy.stored_experts, plain.stored_experts, strict=True):
                assert found.dtype == expected.dtype
                assert torch.equal(found, expected)


@pytest.mark.parametrize("base", DTYPES, ids=str)
@pytest.mark.parametrize("expert", DTYPES, ids=str)
def test_any_dtypes(tmp_path: Path, base: torch.dtype, expert: torch.dtype):
    experts = {"aa": stored(tmp_path, "aa", expert), "bbb": stored(tmp_path, "bbb", torch.float32)}
    alike(ModelPool(stored(tmp_path, "b", base), experts))


def test_models_in_memory_and_task_vectors_that_lack_a_parameter(tmp_path: Path):
    store = MemoryStore({key: torch.randn(30, 50) for key in ("w", "v")})
    experts = {
        "memory": Checkpoint({key: (store, key) for key in ("w", "v")}, "memory"),
        "lacks": stored(tmp_path, "lacks", torch.float32, is_delta=True, lacks=True),
        "file": stored(tmp_path, "file", torch.float32),
    }
    alike(ModelPool(stored(tmp_path, "b", torch.float32), experts))


def test_a_system_without_preadv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "preadv")
    alike(ModelPool(stored(tmp_path, "b", DTYPES[0]), {"aa": stored(tmp_path, "aa", DTYPES[0])}))


def test_a_file_that_is_cut_short_while_it_is_read(tmp_path: Path):
    pool = ModelPool(stored(tmp_path, "b", DTYPES[0]), {"aa": stored(tmp_path, "aa", DTYPES[0])})
    os.truncate(tmp_path / "aa.safetensors", 500)
    room = Room(pool.checkpoints, 1, SIZE, "cpu")
    with pytest.raises(CheckpointError, match=r"aa\.safetensors: was cut short"):
        pool.leaf("v", 700, 1400, room=room)
