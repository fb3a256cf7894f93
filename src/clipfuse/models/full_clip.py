"""A full CLIP as a Hugging Face folder: a vision tower, and the base's text tower, tokenizer and processor."""

import json
import shutil
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipfuse.checkpoints.checkpoint import open_files, weights_file
from clipfuse.checkpoints.geometry import Geometry
from clipfuse.checkpoints.json_file import read_json as parse
from clipfuse.checkpoints.locate import CLIP
from clipfuse.checkpoints.names import ELSEWHERE, hub_name
from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.checkpoints.writer import SafetensorsWriter, write_errors, write_text
from clipfuse.errors import ModelError
from clipfuse.models.build import is_full_clip
from clipfuse.models.clip_base import ClipBase

BUFFER = "embeddings.position_ids"
"""Stored by transformers before 4.31 in both towers; counted from the geometry."""
PATHS = ("_name_or_path", "name_or_path", "tokenizer_file", "special_tokens_map_file")
"""Keys under which transformers keeps where files lay on the machine that wrote them."""
NEEDED = {
    "image processor": ("preprocessor_config.json", "processor_config.json"),
    "tokenizer": ("tokenizer.json", "vocab.json"),
}
"""What a base must have in one file or the other."""


def write_full_clip(folder: Path, tensors: Mapping[str, Tensor], base: ClipBase, geometry: Geometry) -> None:
    """Write a `CLIPModel` into a folder: config.json, one model.safetensors, and the base's tokenizer and processor.

    Tensors are written as they are; config.json names a dtype that holds all of them.

    Args:
        folder: Must be there.
        tensors: The vision tower by canonical name; projections or a text side of its own by a CLIPModel's names.
        base: Gives everything else.
        geometry: Of the tower.

    Raises:
        ModelError: the base is no whole CLIP, or the tower does not belong to it.
        OutputError: no space, no permission.
    """
    check_fit(base, geometry)
    mine = {name if name.startswith(ELSEWHERE) else hub_name(name): tensor for name, tensor in tensors.items()}
    places, _ = open_files(weights_file(base.folder))
    rest = {
        name: place
        for name, place in places.items()
        if name.startswith(ELSEWHERE) and not name.endswith(BUFFER) and name not in mine
    }
    specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in mine.items()}
    specs |= {name: store.specs[stored] for name, (store, stored) in rest.items()}
    config = with_dtype(read_json(base.folder / "config.json"), [spec.dtype for spec in specs.values()])
    check_whole(base, config, specs)
    write_json(folder / "config.json", config | {"architectures": ["CLIPModel"]})
    copy_words(base, folder)
    with SafetensorsWriter(folder / "model.safetensors", dict(sorted(specs.items()))) as writer:
        for name, tensor in mine.items():
            writer.write(name, tensor)
        for name, (store, stored) in rest.items():
            writer.write(name, store.read(stored))


def check_fit(base: ClipBase, geometry: Geometry) -> None:
    """Raises ModelError if the base is no full CLIP or has another geometry (the projection's width is the base's)."""
    if not is_full_clip(base.folder):
        raise ModelError(f"{base.ref}: is not a full CLIP model; a base needs its text encoder too")
    for name, value in geometry.model_dump(exclude={"projection_dim"}).items():
        if value != (its := getattr(base.geometry, name)):
            raise ModelError(f"the model does not belong to {base.ref}: {name} is {value}, the base's {its}")
    for what, files in NEEDED.items():
        if not any((base.folder / file).is_file() for file in files):
            raise ModelError(f"{base.ref}: has no {what} ({' or '.join(files)})")


def check_whole(base: ClipBase, config: Mapping[str, Any], specs: Mapping[str, TensorSpec]) -> None:
    """Raises ModelError unless transformers finds every parameter of a `CLIPModel` of this configuration."""
    from transformers import CLIPConfig, CLIPModel

    with torch.device("meta"):
        wanted = CLIPModel(CLIPConfig(**config)).state_dict()
    for name in sorted(wanted.keys() | specs.keys()):
        needs = tuple(wanted[name].shape) if name in wanted else None
        found = specs[name].shape if name in specs else None
        if found != needs:
            wrong = f"lacks {name}" if found is None else f"has {name} {found}, its config.json says {needs or 'none'}"
            raise ModelError(f"{base.ref}: is no whole CLIP model: it {wrong}")


def with_dtype(config: dict[str, Any], dtypes: list[torch.dtype]) -> dict[str, Any]:
    """A configuration without paths, with the narrowest dtype that holds `dtypes` and the one that it names itself."""
    named = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), None)
    dtypes = [*dtypes, named] if isinstance(named, torch.dtype) else dtypes
    dtype = str(reduce(torch.promote_types, dtypes)).removeprefix("torch.")
    towers = {key: config[key] for key in ("text_config", "vision_config") if isinstance(config.get(key), dict)}
    parts = {key: without(tower, "torch_dtype", *PATHS) | {"dtype": dtype} for key, tower in towers.items()}
    return without(config, "torch_dtype", *PATHS) | parts | {"dtype": dtype}


def copy_words(base: ClipBase, folder: Path) -> None:
    """Tokenizer and processor, bit by bit but for what names places on the base's machine."""
    for name in CLIP:
        source = base.folder / name
        if name == "config.json" or not source.is_file():
            continue
        tree = read_json(source) if name.endswith("_config.json") else {}
        if any(key in tree for key in PATHS):
            write_json(folder / name, without(tree, *PATHS))
        else:
            with write_errors(folder / name):
                shutil.copyfile(source, folder / name)


def without(tree: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if key not in keys}


def read_json(path: Path) -> dict[str, Any]:
    """Raises ModelError for anything else than a JSON object."""
    try:
        tree = parse(path)
    except (ValueError, OSError, RecursionError) as error:
        raise ModelError(f"{path}: is not JSON ({error})") from None
    if not isinstance(tree, dict):
        raise ModelError(f"{path}: is not a JSON object")
    return tree


def write_json(path: Path, tree: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(tree, indent=2, ensure_ascii=False) + "\n")
