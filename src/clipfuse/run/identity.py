"""What a model is, and what is wrong with it: family, base, activation, geometry, hashes; looked into if asked."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipfuse.checkpoints.applied import applied
from clipfuse.checkpoints.checkpoint import Checkpoint, common_dtype, open_checkpoint, open_files, weights_file
from clipfuse.checkpoints.geometry import Geometry, find_geometry, is_linearised
from clipfuse.checkpoints.hashes import compute_hash, known_hash
from clipfuse.checkpoints.locate import Located, locate
from clipfuse.checkpoints.lora import is_adapter, other_base, zero_factors
from clipfuse.checkpoints.openclip import bare_tower, outer_prefix
from clipfuse.checkpoints.torch_file import TorchFile
from clipfuse.errors import ClipfuseError, ModelError
from clipfuse.fusion.merged import read_recipe
from clipfuse.models.build import build_vision_model, is_full_clip
from clipfuse.models.tower import Tower, open_tower
from clipfuse.progress import Stage, silent
from clipfuse.run.models import modules_of, tower_of

FAR, TURNED = 0.3, 0.95
"""Norm of τ ÷ that of the base above which, and cosine with the base below which, a model is no expert of it: the
field's experts are within some hundredths of their base, models trained apart about 1.4 away."""

ASSUMED = " (assumed: the file does not say)"
OTHER = {"quick_gelu": "gelu", "gelu": "quick_gelu"}

TALL_DTD = (
    "a DTD expert of the 20-task checkpoints: those from before December 2024 were trained on images of DTD's test "
    "split; without the leak the average of its eight-task experts is about 2.4 points lower"
)


@dataclass(frozen=True)
class Distance:
    """How far a model is from its base."""

    relative: float
    """‖θ − θ0‖ / ‖θ0‖."""
    cosine: float
    """Of θ and θ0."""
    broken: tuple[str, ...]
    """Parameters that hold NaN or Inf."""


def describe(ref: str, deep: bool = False, base: str | None = None, stage: Stage = silent) -> dict[str, Any]:
    """What a model is, from its names, shapes and configuration; with `deep`, its weights are read and compared.

    Args:
        ref: A folder, weights file or hub id.
        deep: Read the weights, compare them with the base's, and compute hashes that are not known.
        base: Of the model; as its recipe or adapter says, or the one known base of its geometry by default.
        stage: Shows progress.

    Raises:
        LocateError, CheckpointError, ModelError.
    """
    at = locate(ref)
    adapter = is_adapter(at.folder)
    found: Tower | None = None
    problem = None
    try:
        base = tower_of(at, base)
        found = open_tower(base) if deep else None
    except ClipfuseError as error:
        problem = str(error)
    opened = open_checkpoint(at.folder, at.ref, found.checkpoint if found and adapter else None)
    checkpoint = applied(found.checkpoint, opened) if found else opened
    geometry = (found.geometry if found else None) if opened.is_delta else find_geometry(at.folder, checkpoint)
    assumed = not opened.is_delta and "hidden_act" not in opened.hints and not described(at.folder)
    recipe = read_recipe(at.folder) if at.folder.is_dir() else None
    facts: dict[str, Any] = {
        "path": str(at.folder),
        "revision": at.revision,
        "family": family(at),
        "base": base if problem is None else None,
        "geometry": str(geometry) if geometry else "the base's",
        "activation": (geometry.hidden_act if geometry else "the base's") + (ASSUMED if assumed else ""),
        "parameters": sum(checkpoint.spec(name).numel for name in checkpoint),
        "dtype": str(common_dtype(opened)).removeprefix("torch."),
        "bytes": opened.nbytes,
        "files": [{"name": f.name, "sha256": compute_hash(f) if deep else known_hash(f)} for f in opened.files],
        "merged by": recipe["method"]["name"] if recipe else None,
    }
    if modules := modules_of(at):
        facts["modules for the tasks"] = ", ".join(sorted(modules))
    if deep:
        empty = zero_factors(opened)
        other = other_base(at.folder, base) if base else None
        told = list(look_into(at, checkpoint, geometry, assumed, found, problem, stage))
        if empty:
            told.append(f"{len(empty)} modules of the adapter add nothing, e.g. {empty[0]}")
        told += [f"is an adapter of {other}; {base} is another"] if other else []
        facts["norm of the task vector ÷ the base's"] = next(
            (t.relative for t in told if isinstance(t, Distance)), None
        )
        facts["warnings"] = [text for text in told if isinstance(text, str)]
    return facts


def family(at: Located) -> str:
    """Who wrote a model, from the structure of its names."""
    merged = (at.folder / "clipfuse.json").is_file()
    if not is_adapter(at.folder) and is_linearised(at.folder):
        return f"linearised (NTK) vision tower{', merged by clipfuse' if merged else ''}"
    if merged:
        return "merged by clipfuse"
    if is_adapter(at.folder):
        linear = (at.folder / "linearized_adapter_model.safetensors").is_file()
        return "linearised LoRA adapter (L-LoRA)" if linear else "LoRA adapter (peft)"
    stored, _ = open_files(weights_file(at.folder))
    outer = outer_prefix(stored)
    modules = {name for store, _ in stored.values() if isinstance(store, TorchFile) for name in store.classes}
    if "src.modeling.ImageEncoder" in modules:
        return "whole module of the task-arithmetic authors (open_clip)"
    if outer == "model.":
        return "state dict of an image encoder around open_clip, as the 20-task checkpoints"
    if outer is not None or bare_tower(stored):
        return "OpenAI's or OpenCLIP's state dict"
    return "transformers CLIPModel" if is_full_clip(at.folder) else "transformers CLIPVisionModel"


def look_into(
    at: Located,
    checkpoint: Checkpoint,
    geometry: Geometry | None,
    assumed: bool,
    base: Tower | None,
    problem: str | None,
    stage: Stage,
) -> Iterator[str | Distance]:
    """Warnings, and the distance from the base where it is at hand."""
    if base is None:
        yield f"the base is not at hand, so nothing is compared with it: {problem}"
    with stage("read the weights", checkpoint.nbytes, "B") as told:
        found = distance(checkpoint, base.checkpoint if base else None, told)
    if base is not None:
        yield found
    if found.broken:
        yield f"NaN or Inf in {len(found.broken)} parameters, e.g. {found.broken[0]}"
    elif base is not None:
        if found.relative == 0 and base.ref != at.ref:
            yield f"equals its base {base.ref}: its task vector is zero"
        elif found.relative > FAR or found.cosine < TURNED:
            yield (
                f"is no fine-tuned {base.ref}: its task vector is {found.relative:.2f} times as long as the base's "
                f"weights, cosine {found.cosine:.2f}"
            )
        elif geometry and (assumed or geometry.hidden_act != base.geometry.hidden_act):
            yield from activation_warning(checkpoint, geometry, assumed, base)
    if common_dtype(checkpoint) == torch.bfloat16:
        yield "stored in bfloat16, which costs about 15 % of a task vector"
    if at.folder.name == "nonlinear_finetuned.pt" and at.folder.parent.name.upper().startswith("DTD"):
        yield TALL_DTD


def distance(checkpoint: Checkpoint, base: Checkpoint | None, told: Any = lambda count: None) -> Distance:
    """How far a model is from its base, in float64, a parameter at a time. Raises ModelError for other parameters."""
    if base is not None and (odd := sorted(base.keys() ^ checkpoint.keys())):
        raise ModelError(f"{checkpoint.source}: {odd[0]!r} is in it or in its base {base.source} only")
    delta = zero = own = product = 0.0
    broken = []
    for name in checkpoint:
        mine = checkpoint[name].double()
        if not mine.isfinite().all():
            broken.append(name)
        if base is not None:
            its = base[name].double()
            if its.shape != mine.shape:
                raise ModelError(f"{checkpoint.source}: {name} is {tuple(mine.shape)}, its base's {tuple(its.shape)}")
            delta += float((mine - its).square().sum())
            zero += float(its.square().sum())
            own += float(mine.square().sum())
            product += float((mine * its).sum())
        told(checkpoint.spec(name).nbytes)
        checkpoint.release(name)
    norm = (own * zero) ** 0.5
    return Distance((delta / zero) ** 0.5 if zero else 0.0, product / norm if norm else 0.0, tuple(broken))


def described(at: Path) -> bool:
    """Whether a configuration beside the weights says what the activation is."""
    folder = at if at.is_dir() else at.parent
    return any((folder / name).is_file() for name in ("config.json", "open_clip_config.json"))


def activation_warning(weights: Mapping[str, Tensor], geometry: Geometry, assumed: bool, base: Tower) -> Iterator[str]:
    """Which of two activations brings a model's features nearer to the base's, on a probe image."""
    side = geometry.image_size
    coarse = torch.randn(1, geometry.num_channels, 7, 7, generator=torch.Generator().manual_seed(0))
    pixels = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")

    @torch.no_grad()
    def features(values: Mapping[str, Tensor], activation: str) -> Tensor:
        model = build_vision_model(values, geometry.model_copy(update={"hidden_act": activation, "linearised": False}))
        return model(pixel_values=pixels).pooler_output[0]

    own, its = geometry.hidden_act, base.geometry.hidden_act
    its = its if own != its else OTHER.get(own, own)
    reference = features(base.checkpoint, base.geometry.hidden_act)
    near = {act: float(torch.cosine_similarity(features(weights, act), reference, dim=0)) for act in (own, its)}
    better = max(near, key=lambda act: near[act])
    said = "the file does not say its activation" if assumed else f"its configuration says {own}, the base's {its}"
    if not assumed or better != own:
        yield (
            f"{said}; on a probe image its features have cosine {near[own]:.3f} with the base's under {own} and "
            f"{near[its]:.3f} under {its}: {better} is the likelier"
        )
