"""Mutants of sound files of every format: each is read or refused in one line, soon, and makes no file.

`scripts/fuzz_readers.py` looks for new failures by the same properties; the files of those that it found are in
`corpus/`, as `<format>-<number>`.
"""

import contextlib
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

pytest.importorskip("hypothesis")

from file_mutants import (
    PICKLES,
    spoiled_file,
    spoiled_header,
    spoiled_json,
    spoiled_legacy,
    spoiled_zip,
)
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy
from openclip_reference import random_openclip

from clipfuse.checkpoints.checkpoint import Checkpoint, from_memory, open_checkpoint, open_files
from clipfuse.checkpoints.geometry import Geometry, find_geometry, misfit, parameter_shapes
from clipfuse.checkpoints.layouts import text_places
from clipfuse.checkpoints.ledger import keep_ledger
from clipfuse.checkpoints.locate import locate
from clipfuse.checkpoints.store import Store
from clipfuse.errors import ClipfuseError
from clipfuse.pool.clip_vision import HuggingFaceClipVisionPool

CORPUS = Path(__file__).parent / "corpus"
GEOMETRY = Geometry(
    hidden_size=2, intermediate_size=2, num_hidden_layers=1, num_attention_heads=1, image_size=2, patch_size=1
)
SECONDS, MEBIBYTES = 2, 300


def numbers(*shape: int) -> torch.Tensor:
    return torch.linspace(-1, 1, max(1, torch.Size(shape).numel()))[: torch.Size(shape).numel()].reshape(shape)


WEIGHTS = {name: numbers(*shape) for name, shape in parameter_shapes(GEOMETRY).items()}
STORED = {f"vision_model.{name}": tensor for name, tensor in WEIGHTS.items()}
BASE = from_memory(WEIGHTS, "base")
QUERY = "base_model.model.vision_model.encoder.layers.0.self_attn.q_proj"
SHARDS = {f"{kind}.safetensors": {n: t for n, t in STORED.items() if n.endswith(kind)} for kind in ("bias", "weight")}
SHARDS["weight.safetensors"]["vision_model.embeddings.class_embedding"] = WEIGHTS["embeddings.class_embedding"]


def safetensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
    return save(dict(tensors), {"format": "pt"})


def as_json(tree: object) -> bytes:
    return json.dumps(tree).encode()


def all_values(store: Store) -> None:
    """Read every tensor in all ways that there are."""
    for name, spec in store.specs.items():
        found = store.read(name)
        assert (tuple(found.shape), found.dtype) == (spec.shape, spec.dtype)
        assert found.clone().numel() == spec.numel
        if spec.numel:
            store.read_into(name, 0, memoryview(bytearray(spec.nbytes)))
        store.release(name)


def whole_model(folder: Path, base: Checkpoint | None = None) -> None:
    opened = open_checkpoint(folder, str(folder), base)
    for store in {id(store): store for store, _ in opened.places.values()}.values():
        all_values(store)
    if base is None:
        misfit(find_geometry(folder, opened), {name: opened.spec(name).shape for name in opened})


def every_store(folder: Path) -> None:
    (path,) = folder.iterdir()
    places, _ = open_files(path)
    for store in {id(store): store for store, _ in places.values()}.values():
        all_values(store)


def text_side(folder: Path) -> None:
    places = text_places(open_files(folder / "open_clip_model.safetensors")[0], str(folder))
    assert all(store.read(name).clone().numel() >= 0 for store, name in places.values())


def adapter(folder: Path) -> None:
    whole_model(folder, BASE)


def locked(folder: Path) -> None:
    with keep_ledger(folder):
        locate(str(folder))


def pool(folder: Path) -> None:
    HuggingFaceClipVisionPool.from_yaml(folder / "pool.yaml")


@dataclass(frozen=True)
class Format:
    """One kind of file: its name, what is read with it, what lies beside it, and its mutants."""

    file: str
    steps: Sequence[Callable[[Path], None]]
    mutants: Callable[[], SearchStrategy[bytes]]
    beside: Mapping[str, bytes]


LORA = as_json(
    {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["q_proj"], "rank_pattern": {"x.*": 2},
     "alpha_pattern": {"q_.roj": 3.0}, "bias": "none", "init_lora_weights": True, "layers_to_transform": [0]}
)  # fmt: skip
FACTORS = {f"{QUERY}.lora_A.weight": numbers(1, 2), f"{QUERY}.lora_B.weight": numbers(2, 1)}
OPENCLIP = as_json({"model_cfg": {"vision_cfg": {"width": 2, "head_width": 1, "layers": 1}, "quick_gelu": True}})
FULL = {"model_type": "clip", "projection_dim": 4, "vision_config": GEOMETRY.model_dump()}
INDEX = {"metadata": {}, "weight_map": {name: file for file, tensors in SHARDS.items() for name in tensors}}
FOLDER = {"model.safetensors": safetensors(STORED), "config.json": as_json(FULL)}
LOCK = {
    "schema": 1, "clipfuse": "1",
    "opened": [
        {"kind": "model", "ref": "model", "revision": None,
         "files": {name: sha256(raw).hexdigest() for name, raw in FOLDER.items()}},
    ],
}  # fmt: skip
POOLS = (
    b"type: huggingface_clip_vision\nmodels:\n  - {name: _pretrained_, path: a/b}\n  - name: b\n    path: &x ./b\n",
    b"models: {_pretrained_: a/b, b: ./b}\nplatform: hf\n",
    b"models:\n- name: _pretrained_\n  path: ${x}\n- name: e\n  path: |\n    a\nx: 1e-5\ny: !!str 3\nz: 2001-01-01\n",
    b"_target_: fusion_bench.modelpool.CLIPVisionModelPool\nmodels:\n  _pretrained_: a/b\n  e:\n    path: c\n",
)
FORMATS: dict[str, Format] = {
    "safetensors": Format(
        "model.safetensors",
        (every_store, whole_model),
        lambda: spoiled_file((safetensors(STORED), safetensors(WEIGHTS | {"x": torch.ones(2, 0)})), spoiled_header),
        {},
    ),
    "zip": Format("a.pt", (every_store,), lambda: spoiled_file(PICKLES, spoiled_zip), {}),
    "legacy": Format("a.pt", (every_store,), lambda: spoiled_file(PICKLES, spoiled_legacy), {}),
    "index": Format(
        "model.safetensors.index.json",
        (whole_model, lambda folder: locate(str(folder)) and None),
        lambda: spoiled_file((as_json(INDEX),), spoiled_json),
        {file: safetensors(tensors) for file, tensors in SHARDS.items()} | {"config.json": as_json(FULL)},
    ),
    "config": Format(
        "config.json",
        (whole_model,),
        lambda: spoiled_file((as_json(FULL), as_json(GEOMETRY.to_config())), spoiled_json),
        {"model.safetensors": safetensors(STORED)},
    ),
    "openclip": Format(
        "open_clip_model.safetensors",
        (whole_model, text_side),
        lambda: spoiled_file(
            (safetensors(random_openclip(width=2, layers=1, patch=1, grid=1, embed=1)),), spoiled_header
        ),
        {"open_clip_config.json": OPENCLIP},
    ),
    "openclip-config": Format(
        "open_clip_config.json",
        (whole_model,),
        lambda: spoiled_file((OPENCLIP,), spoiled_json),
        {"open_clip_model.safetensors": safetensors(random_openclip(width=2, layers=1, patch=1, grid=1, embed=1))},
    ),
    "adapter": Format(
        "adapter_model.safetensors",
        (adapter, whole_model),
        lambda: spoiled_file((safetensors(FACTORS),), spoiled_header),
        {"adapter_config.json": LORA},
    ),
    "adapter-config": Format(
        "adapter_config.json",
        (adapter, whole_model),
        lambda: spoiled_file((LORA,), spoiled_json),
        {"adapter_model.safetensors": safetensors(FACTORS)},
    ),
    "lock": Format(
        "clipfuse.lock",
        (locked,),
        lambda: spoiled_file((as_json(LOCK),), spoiled_json),
        FOLDER,
    ),
    "pool": Format("pool.yaml", (pool,), lambda: spoiled_file(POOLS), {}),
}


def peak() -> int:
    """Most memory that this process ever had, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10)


def check(kind: str, raw: bytes) -> None:
    """Whatever is done with a file either works or is refused in one line, soon; and no file is made."""
    form = FORMATS[kind]
    with tempfile.TemporaryDirectory() as there, contextlib.chdir(there):
        folder = Path("model")
        folder.mkdir()
        for name, sound in form.beside.items():
            (folder / name).write_bytes(sound)
        (folder / form.file).write_bytes(raw)
        for step in form.steps:
            began, before = time.process_time(), peak()
            try:
                step(folder)
            except ClipfuseError as error:
                said = str(error)
                assert said.isprintable(), f"not one printable line: {said[:500]!r}"
                assert len(said) < 2000, f"{len(said)} characters: {said[:500]}"
            assert (took := time.process_time() - began) < SECONDS, f"took {took:.1f} s"
            assert peak() - before < MEBIBYTES, f"took {peak() - before} MiB"
        assert os.listdir() == ["model"]
        assert sorted(os.listdir("model")) == sorted({*form.beside, form.file})


@pytest.mark.parametrize("kind", FORMATS)
def test_mutants(kind: str):
    @settings(max_examples=150, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(FORMATS[kind].mutants())
    def property_of(raw: bytes) -> None:
        check(kind, raw)

    property_of()


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_corpus(path: Path):
    check(path.name.rpartition("-")[0], path.read_bytes())
