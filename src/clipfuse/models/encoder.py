"""Encoders: all that evaluation knows of a model."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor

from clipfuse.checkpoints.checkpoint import Checkpoint
from clipfuse.checkpoints.geometry import Geometry
from clipfuse.checkpoints.hashes import compute_hash
from clipfuse.checkpoints.names import PROJECTION
from clipfuse.errors import ModelError
from clipfuse.models.build import build_vision_model
from clipfuse.models.clip_base import ClipBase
from clipfuse.models.linearised import LinearisedTower
from clipfuse.shapes import Float

if TYPE_CHECKING:
    from transformers import CLIPVisionModel


@runtime_checkable
class Encoder(Protocol):
    """What evaluation needs of a model."""

    needs_task_id: bool
    """Whether `features` must know the task; then a model is scored on its own tasks only."""
    base: str
    """Identity of the base whose heads fit."""

    @property
    def bytes(self) -> int:
        """Memory of the weights that this encoder adds."""
        ...

    @property
    def widest(self) -> int:
        """Bytes of the largest activation of one image, float32; 0 where that is not known."""
        ...

    def features(self, pixels: Float[Tensor, "batch 3 height width"], task: str | None) -> Float[Tensor, "batch embed"]:
        """Image embeddings in the space shared with text, not normalised."""
        ...

    def identity(self) -> str:
        """Digest of all that features depend on."""
        ...


class VisionEncoder:
    """A vision tower with the base's projection, or with one of its own, (embed, width) float32."""

    needs_task_id = False

    def __init__(self, vision: "CLIPVisionModel | LinearisedTower", base: ClipBase, projection: Tensor | None = None):
        self.vision = vision
        self.projection = base.projection if projection is None else projection
        self.base = base.identity
        check_fits(Geometry.model_validate(vision.config.to_dict()), base)

    @property
    def bytes(self) -> int:
        """Bytes of the tower's parameters; of a linearised one, of θ0 and τ."""
        return sum(parameter.nbytes for parameter in self.vision.parameters())

    @property
    def widest(self) -> int:
        """4 bytes × tokens × the MLPs' width, or heads × tokens where that is more and attention eager (linearised)."""
        geometry = Geometry.model_validate(self.vision.config.to_dict())
        tokens = (geometry.image_size // geometry.patch_size) ** 2 + 1
        attention = geometry.num_attention_heads * tokens if geometry.linearised else 0
        return 4 * tokens * max(geometry.intermediate_size, attention)

    def to(self, device: torch.device, dtype: torch.dtype) -> "VisionEncoder":
        """Move the tower (in place) and return the encoder."""
        torch.nn.Module.to(self.vision, device, dtype)
        self.projection = self.projection.to(device)
        return self

    def identity(self) -> str:
        """sha256 over the tower's parameters as they are, its activation, and the base's identity."""
        found = hashlib.sha256(f"{self.base} {self.vision.config.hidden_act}".encode())
        for name, value in sorted(self.vision.state_dict().items()):
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        found.update(self.projection.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return found.hexdigest()

    @torch.no_grad()
    def features(self, pixels: Float[Tensor, "batch 3 height width"], task: str | None) -> Float[Tensor, "batch embed"]:
        pooled = self.vision(pixel_values=pixels.to(self.vision.dtype)).pooler_output
        return torch.nn.functional.linear(pooled.float(), self.projection)


def check_fits(geometry: Geometry, base: ClipBase, model: str = "the model") -> None:
    """Raises ModelError where a vision tower cannot be one of the base's."""
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size"):
        if (mine := vars(geometry)[name]) != (its := vars(base.geometry)[name]):
            raise ModelError(f"{model} does not belong to {base.ref}: {name} is {mine}, the base's {its}")
    if base.geometry.linearised:
        raise ModelError(f"{base.ref}: is linearised; a base is what models are expanded around")
    if geometry.linearised and geometry.hidden_act != base.geometry.hidden_act:
        mine, its = geometry.hidden_act, base.geometry.hidden_act
        raise ModelError(f"{model} is no expansion of {base.ref}: its activation is {mine}, the base's {its}")


def build_encoder(
    weights: Mapping[str, Tensor], geometry: Geometry, base: ClipBase, whole: bool = False
) -> VisionEncoder:
    """An encoder with a copy of `weights` (by canonical name, maybe with a projection) on a base.

    That of a linearised model is expanded around the base's weights in the parameters that differ from them, in all if
    `whole`.

    Raises:
        ModelError: they do not belong to the base, or a base that is linearised itself.
    """
    projection = weights[PROJECTION].float().clone() if PROJECTION in weights else None
    if projection is not None and projection.shape != base.projection.shape:
        mine, its = tuple(projection.shape), tuple(base.projection.shape)
        raise ModelError(f"the model does not belong to {base.ref}: its projection is {mine}, the base's {its}")
    if geometry.linearised:
        return VisionEncoder(expanded(weights, geometry, base, whole), base, projection)
    return VisionEncoder(build_vision_model(weights, geometry), base, projection)


def expanded(weights: Mapping[str, Tensor], geometry: Geometry, base: ClipBase, whole: bool) -> LinearisedTower:
    """The tower of `build_encoder` for a linearised model."""
    check_fits(geometry, base)
    origin = base.checkpoint
    if odd := sorted(origin.keys() ^ (weights.keys() - {PROJECTION})):
        raise ModelError(f"the model does not belong to {base.ref}: {odd[0]!r} is in one of them only")
    tower = build_vision_model(origin, base.geometry)
    deltas: dict[str, Tensor] = {}
    for name in origin:
        if (mine := weights[name]).shape != (its := origin[name]).shape:
            found, wanted = tuple(mine.shape), tuple(its.shape)
            raise ModelError(f"the model does not belong to {base.ref}: {name} is {found}, the base's {wanted}")
        delta = mine.float() - its.float()
        if whole or delta.any():
            deltas[name] = delta
    return LinearisedTower(tower, deltas)


def identity_of_files(checkpoint: Checkpoint, geometry: Geometry, base: ClipBase, beside: Sequence[Path] = ()) -> str:
    """Digest of a model's files and those `beside` them, geometry and base: what its features depend on, not loaded."""
    files = [compute_hash(path) for path in (*checkpoint.files, *beside)]
    return hashlib.sha256(f"{base.identity} {geometry.model_dump_json()} {files}".encode()).hexdigest()
