"""`convert`: a model of any format that is read into one that others read: names, layout and dtype, nothing else."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipfuse.checkpoints.geometry import is_linearised
from clipfuse.checkpoints.layouts import Places
from clipfuse.checkpoints.locate import Located, locate
from clipfuse.checkpoints.names import PREFIX, PROJECTION, hub_name
from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.checkpoints.writer import SafetensorsWriter, check_output, new_folder, write_text
from clipfuse.errors import ModelError
from clipfuse.fusion.merged import RECIPE, read_recipe
from clipfuse.models.build import is_full_clip
from clipfuse.models.full_clip import write_full_clip
from clipfuse.pool.projections import equal
from clipfuse.progress import Stage, silent
from clipfuse.run.extract_lora import extract
from clipfuse.run.models import modules_of
from clipfuse.run.source import Source, Told
from clipfuse.run.to_openclip import write_openclip

log = logging.getLogger(__name__)


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
    if to != "hf" and is_linearised(source.at.folder):
        raise ModelError(f"{ref}: is linearised, which the format {to} cannot say; hf can")
    if modules_of(source.at):
        raise ModelError(f"{ref}: has a module for each task, which no other format can hold; it is not converted")
    check_output(out, overwrite, source.checkpoint.files)
    with stage(f"write {to}", source.checkpoint.nbytes, "B") as told, new_folder(out, overwrite) as folder:
        facts = WRITERS[to](source, folder, dtype, told, rank)
        carry_recipe(source.at, folder, to, dtype)
    return {"out": str(out), "to": to, **facts}


def carry_recipe(at: Located, folder: Path, to: str, dtype: torch.dtype | None) -> None:
    """Let a merge's recipe go with its weights, and so what it has seen; a warning where the format has no place."""
    recipe = read_recipe(at.folder) if at.folder.is_dir() else None
    if recipe and to == "hf":
        written = {"dtype": str(dtype).removeprefix("torch.")} if dtype else {}
        write_text(folder / RECIPE, json.dumps({**recipe, **written}, indent=2, ensure_ascii=False) + "\n")
        for name in recipe.get("files", ()):
            if Path(name).name == name and (at.folder / name).is_file():
                write_text(folder / name, (at.folder / name).read_text(encoding="utf-8"))
    elif recipe and recipe["uses"]:
        seen = ", ".join(recipe["uses"])
        log.warning("%s: its method has seen %s; the format %s has no place to say so", at.ref, seen, to)


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


def write_lora(source: Source, folder: Path, dtype: torch.dtype | None, told: Told, rank: int) -> Mapping[str, Any]:
    """A PEFT adapter of the base: what is left of the task vector at a rank, and how much that is."""
    base, expert = source.tower.checkpoint, source.checkpoint
    if base.projection and expert.projection and not equal(base.projection, expert.projection):
        base, expert = base.with_projection(), expert.with_projection()
    return extract(base, expert, folder, source.tower.ref, rank, dtype, told)


WRITERS: Mapping[str, Callable[..., Mapping[str, Any]]] = {
    "hf": write_hf,
    "clip": write_clip,
    "openclip": write_openclip,
    "lora": write_lora,
}
"""Format → who writes it."""
