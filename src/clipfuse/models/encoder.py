"""Encoders: all that evaluation knows of a model; and the base that gives them text, projection and processor."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from clipfuse.checkpoints.geometry import Geometry, read_geometry
from clipfuse.checkpoints.locate import CLIP, locate
from clipfuse.errors import ModelError
from clipfuse.models.build import load_clip_model, quiet_transformers
from clipfuse.shapes import Float

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPVisionModel

KNOWN_BASES: dict[tuple[int, int, int, int], str] = {
    (768, 12, 32, 224): "openai/clip-vit-base-patch32",
    (768, 12, 16, 224): "openai/clip-vit-base-patch16",
    (1024, 24, 14, 224): "openai/clip-vit-large-patch14",
    (1024, 24, 14, 336): "openai/clip-vit-large-patch14-336",
}
"""(width, layers, patch, image size) → the one base that the field fine-tunes at that geometry."""


@runtime_checkable
class Encoder(Protocol):
    """What evaluation needs of a model."""

    needs_task_id: bool
    """Whether `features` must know the task; then a model is scored on its own tasks only."""
    base: str
    """The base whose heads fit."""

    @property
    def bytes(self) -> int:
        """Memory of the weights that this encoder adds."""
        ...

    def features(self, pixels: Float[Tensor, "batch 3 height width"], task: str | None) -> Float[Tensor, "batch embed"]:
        """Image embeddings in the space shared with text, not normalised."""
        ...


class VisionEncoder:
    """A vision tower with the base's projection."""

    needs_task_id = False

    def __init__(self, vision: "CLIPVisionModel", base: "ClipBase"):
        self.vision = vision
        self.projection = base.clip.visual_projection
        self.base = base.ref
        found = Geometry.model_validate(vision.config.to_dict())
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size"):
            if (mine := vars(found)[name]) != (its := vars(base.geometry)[name]):
                raise ModelError(f"the model does not belong to {base.ref}: {name} is {mine}, the base's {its}")

    @property
    def bytes(self) -> int:
        """Bytes of the tower's parameters."""
        return sum(parameter.nbytes for parameter in self.vision.parameters())

    def to(self, device: torch.device, dtype: torch.dtype) -> "VisionEncoder":
        """Move the tower (in place) and return the encoder."""
        torch.nn.Module.to(self.vision, device, dtype)
        self.projection = self.projection.to(device)
        return self

    @torch.no_grad()
    def features(self, pixels: Float[Tensor, "batch 3 height width"], task: str | None) -> Float[Tensor, "batch embed"]:
        pooled = self.vision(pixel_values=pixels.to(self.vision.dtype)).pooler_output
        return self.projection(pooled.float())


@dataclass(frozen=True)
class ClipBase:
    """A pre-trained CLIP: text encoder, projections, logit_scale, tokenizer and preprocessing."""

    ref: str
    """As a user writes it: a path or hub id."""
    folder: Path

    @cached_property
    def clip(self) -> "CLIPModel":
        """The full model, float32."""
        return load_clip_model(self.folder)

    @cached_property
    def geometry(self) -> Geometry:
        """Of its vision tower."""
        return read_geometry(self.folder)

    @cached_property
    def tokenizer(self) -> Any:
        """The folder's tokenizer. Raises ModelError if it has none."""
        from transformers import AutoTokenizer

        if not any((self.folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise ModelError(f"{self.ref}: has no tokenizer (tokenizer.json, or vocab.json and merges.txt)")
        try:
            with quiet_transformers():
                return AutoTokenizer.from_pretrained(self.folder)
        except (OSError, ValueError) as error:
            raise ModelError(f"{self.ref}: has no tokenizer that loads ({str(error).splitlines()[0]})") from None

    @property
    def logit_scale(self) -> float:
        """exp(logit_scale): the factor from cosines to logits."""
        return float(self.clip.logit_scale.detach().exp())

    @torch.no_grad()
    def text_features(self, prompts: Sequence[str]) -> Float[Tensor, "prompt embed"]:
        """Text embeddings in the shared space, unit length."""
        length = self.clip.text_model.embeddings.position_embedding.num_embeddings
        tokens = self.tokenizer(list(prompts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        found: Any = self.clip.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return torch.nn.functional.normalize(getattr(found, "pooler_output", found).float(), dim=-1)  # a tensor in 4.x


def open_base(ref: str) -> ClipBase:
    """Locate a base with all that it needs. Raises LocateError."""
    return ClipBase(ref, locate(ref, CLIP).folder)


def known_base(geometry: Geometry | None, what: str) -> str:
    """The one known base of a geometry. Raises ModelError if there is none: then `base=` must name it."""
    key = geometry and (geometry.hidden_size, geometry.num_hidden_layers, geometry.patch_size, geometry.image_size)
    if key not in KNOWN_BASES:
        shape = geometry or "of unknown geometry"
        raise ModelError(f"{what}: no known base for {shape}; name it: base=org/name or base=./folder")
    return KNOWN_BASES[key]
