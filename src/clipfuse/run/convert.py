"""`convert`: a model of any format that is read into one that others read: names, layout and dtype, nothing else."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipfuse.checkpoints.applied import applied
from clipfuse.checkpoints.checkpoint import Checkpoint, open_checkpoint, open_files, weights_file
from clipfuse.checkpoints.geometry import Geometry, find_geometry
from clipfuse.checkpoints.layouts import Places, text_places
from clipfuse.checkpoints.locate import Located, locate
from clipfuse.checkpoints.lora import is_adapter
from clipfuse.checkpoints.names import PREFIX, PROJECTION, hub_name
from clipfuse.checkpoints.openclip import Part, theirs
from clipfuse.checkpoints.parts import THIRDS
from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.checkpoints.writer import SafetensorsWriter, check_output, new_folder, write_text
from clipfuse.errors import ModelError
from clipfuse.models.base import ClipBase, open_base
from clipfuse.models.build import is_full_clip
from clipfuse.models.full_clip import write_full_clip
from clipfuse.run.extract_lora import extract
from clipfuse.run.models import base_of
from clipfuse.run.progress import Stage, silent

Told = Callable[[int], None]


@dataclass(frozen=True)
class Source:
    """A model to convert, opened; its base is looked for only where something of it is needed."""

    at: Located
    given: str | None = None
    """The base that the user named."""

    @cached_property
    def base(self) -> ClipBase:
        return open_base(base_of(self.at, self.given))

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Its full vision tower."""
        base = self.base.checkpoint if is_adapter(self.at.folder) else None
        found = open_checkpoint(self.at.folder, self.at.ref, base)
        return applied(base, found) if base else found

    @cached_property
    def geometry(self) -> Geometry:
        adapted = is_adapter(self.at.folder)
        return self.base.geometry if adapted else find_geometry(self.at.folder, self.checkpoint)

    @cached_property
    def own_text(self) -> Places:
        """The text side that it stores itself, if it does."""
        if is_adapter(self.at.folder):
            return {}
        path = weights_file(self.at.folder)
        return text_places(open_files(path)[0], str(path))

    @cached_property
    def whole(self) -> Places:
        """All of a CLIPModel, by its names: what the model does not store is the base's."""
        text = self.own_text or text_places(open_files(weights_file(self.base.folder))[0], self.base.ref)
        weights = self.checkpoint.with_projection()
        if PROJECTION not in weights:
            weights = weights.with_projection(self.base.checkpoint.projection)
        if PROJECTION not in weights or not text:
            raise ModelError(
                f"{self.base.ref}: is not a full CLIP model; a base needs its text encoder and projections"
            )
        return {hub_name(name): place for name, place in weights.places.items()} | text


def convert(
    ref: str,
    out: str | Path,
    to: str,
    *,
    base: str | None = None,
    rank: int = 16,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    stage: Stage = silent,
) -> Mapping[str, Any]:
    """Write a model in another format, and say what was written.

    Args:
        ref: A folder, weights file or hub id.
        out: A new folder.
        to: `hf` (vision tower, transformers), `clip` (full CLIPModel with processor and tokenizer), `openclip` (full
            model for open_clip), `lora` (a PEFT adapter).
        base: Where the text side is from that a model does not store; the one known base of the geometry by default.
        rank: Of a LoRA.
        dtype: Of the result; as stored by default.
        overwrite: Replace what clipfuse wrote there.
        stage: Shows progress.

    Raises:
        LocateError, CheckpointError, ModelError, OutputError.
    """
    out = Path(out)
    check_output(out, overwrite)
    source = Source(locate(ref), base)
    check_output(out, overwrite, source.checkpoint.files)
    with stage(f"write {to}", source.checkpoint.nbytes, "B") as told, new_folder(out, overwrite) as folder:
        facts = WRITERS[to](source, folder, dtype, told, rank)
    return {"out": str(out), "to": to, **facts}


def write_hf(source: Source, folder: Path, dtype: torch.dtype | None, told: Told, rank: int) -> Mapping[str, Any]:
    """A CLIPVisionModel, with the projection if the model stores one and is not itself a full CLIP."""
    own = not is_full_clip(source.at.folder)
    weights = source.checkpoint.with_projection() if own else source.checkpoint
    config = source.geometry.to_config(with_projection=PROJECTION in weights)
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    places = {hub_name(name): weights.places[name] for name in sorted(weights)}
    write_places(folder / "model.safetensors", places, dtype, told)
    return {"tensors": len(places), "projection": PROJECTION in weights}


def write_clip(source: Source, folder: Path, dtype: torch.dtype | None, told: Told, rank: int) -> Mapping[str, Any]:
    """A full CLIPModel with the base's processor and tokenizer."""
    whole = source.whole
    tensors: dict[str, Tensor] = {}
    for name, (store, at) in whole.items():
        values = store.read(at)
        tensors[name.removeprefix(PREFIX)] = values if dtype is None else values.to(dtype)
        told(store.specs[at].nbytes)
    write_full_clip(folder, tensors, source.base, source.geometry)
    return {"tensors": len(tensors), "text side": "its own" if source.own_text else source.base.ref}


def write_places(path: Path, places: Places, dtype: torch.dtype | None, told: Told) -> None:
    """One safetensors file with the tensors at `places`, in order."""
    specs = {
        name: TensorSpec(store.specs[at].shape, dtype or store.specs[at].dtype) for name, (store, at) in places.items()
    }
    with SafetensorsWriter(path, specs) as writer:
        for name, (store, at) in places.items():
            writer.write(name, store.read(at).to(specs[name].dtype))
            store.release(at)
            told(store.specs[at].nbytes)


def write_openclip(source: Source, folder: Path, dtype: torch.dtype | None, told: Told, rank: int) -> Mapping[str, Any]:
    """`open_clip_model.safetensors` and `open_clip_config.json`: what `open_clip.create_model("local-dir:…")` takes."""
    places = source.whole
    wanted: dict[str, list[tuple[str, Part]]] = {}
    for name in places:
        stored, part = theirs(name)
        wanted.setdefault(stored, []).append((name, part))
    specs: dict[str, TensorSpec] = {}
    for stored, parts in wanted.items():
        store, at = places[parts[0][0]]
        spec = store.specs[at]
        fused = parts[0][1] in THIRDS
        if fused and len(parts) != 3:
            raise ModelError(f"{source.at.ref}: lacks query, key or value of {stored}")
        shape = (3 * spec.shape[0], *spec.shape[1:]) if fused else spec.shape
        specs[stored] = TensorSpec(shape[::-1] if parts[0][1] == "transposed" else shape, dtype or spec.dtype)
    with SafetensorsWriter(folder / "open_clip_model.safetensors", specs) as writer:
        for stored, parts in wanted.items():
            for name, part in parts:
                store, at = places[name]
                values = store.read(at).to(specs[stored].dtype)
                start = THIRDS[part] * values.numel() if part in THIRDS else 0
                writer.write(stored, values.mT if part == "transposed" else values, start)
                store.release(at)
                told(store.specs[at].nbytes)
    write_text(folder / "open_clip_config.json", json.dumps(openclip_config(source, specs), indent=2) + "\n")
    return {"tensors": len(specs), "text side": "its own" if source.own_text else source.base.ref}


def openclip_config(source: Source, specs: Mapping[str, TensorSpec]) -> dict[str, Any]:
    """What open_clip builds the model from."""
    geometry, text = source.geometry, specs["token_embedding.weight"].shape
    layers = {name.split(".")[2] for name in specs if name.startswith("transformer.resblocks.")}
    heads = max(1, text[1] // 64) if source.own_text else text_heads(source.base.folder)
    return {
        "model_cfg": {
            "embed_dim": specs["visual.proj"].shape[1],
            "quick_gelu": geometry.hidden_act == "quick_gelu",
            "vision_cfg": {
                "image_size": geometry.image_size,
                "layers": geometry.num_hidden_layers,
                "width": geometry.hidden_size,
                "head_width": geometry.hidden_size // geometry.num_attention_heads,
                "mlp_ratio": geometry.intermediate_size / geometry.hidden_size,
                "patch_size": geometry.patch_size,
            },
            "text_cfg": {
                "context_length": specs["positional_embedding"].shape[0],
                "vocab_size": text[0],
                "width": text[1],
                "heads": heads,
                "layers": len(layers),
            },
        },
        "preprocess_cfg": {
            "mean": [0.48145466, 0.4578275, 0.40821073],
            "std": [0.26862954, 0.26130258, 0.27577711],
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def write_lora(source: Source, folder: Path, dtype: torch.dtype | None, told: Told, rank: int) -> Mapping[str, Any]:
    """A PEFT adapter of the base: what is left of the task vector at a rank, and how much that is."""
    return extract(source.base.checkpoint, source.checkpoint, folder, source.base.ref, rank, dtype, told)


def text_heads(folder: Path) -> int:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))["text_config"]["num_attention_heads"]


WRITERS: Mapping[str, Callable[..., Mapping[str, Any]]] = {
    "hf": write_hf,
    "clip": write_clip,
    "openclip": write_openclip,
    "lora": write_lora,
}
"""Format → who writes it."""
