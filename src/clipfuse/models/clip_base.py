"""The base: the pre-trained CLIP that gives every encoder its text side, projection and preprocessing."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from clipfuse.checkpoints.checkpoint import Checkpoint, open_checkpoint, open_files, weights_file
from clipfuse.checkpoints.geometry import Geometry, read_geometry
from clipfuse.checkpoints.hashes import compute_hash
from clipfuse.checkpoints.locate import CLIP, locate
from clipfuse.errors import ModelError
from clipfuse.models.build import is_full_clip, load_text_model, quiet_transformers
from clipfuse.shapes import Float

if TYPE_CHECKING:
    from transformers import CLIPTextModelWithProjection

KNOWN_BASES: dict[tuple[int, int, int, int], str] = {
    (768, 12, 32, 224): "openai/clip-vit-base-patch32",
    (768, 12, 16, 224): "openai/clip-vit-base-patch16",
    (1024, 24, 14, 224): "openai/clip-vit-large-patch14",
    (1024, 24, 14, 336): "openai/clip-vit-large-patch14-336",
}
"""(width, layers, patch, image size) → the one base that the field fine-tunes at that geometry."""

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "special_tokens_map.json")


@dataclass(frozen=True)
class ClipBase:
    """A pre-trained CLIP: text encoder, projections, logit_scale, tokenizer and preprocessing.

    Its vision tower is never loaded, its text tower only when prompts are encoded.
    """

    ref: str
    """As a user writes it: a path or hub id."""
    folder: Path

    @cached_property
    def geometry(self) -> Geometry:
        """Of its vision tower."""
        return read_geometry(self.folder)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Its vision tower, opened and not read: what a task vector is added to."""
        return open_checkpoint(self.folder, self.ref)

    @cached_property
    def identity(self) -> str:
        """Digest of its weights, configuration and tokenizer: the same for a copy in another place."""
        found = hashlib.sha256()
        for path in (*open_files(weights_file(self.folder))[1], self.folder / "config.json", *self.tokenizer_files):
            found.update(f"{path.name} {compute_hash(path)} ".encode())
        return found.hexdigest()

    @property
    def tokenizer_files(self) -> list[Path]:
        return [self.folder / name for name in TOKENIZER if (self.folder / name).is_file()]

    @cached_property
    def projection(self) -> Float[Tensor, "embed width"]:
        """From the vision tower's pooled output into the space shared with text, float32."""
        return self.tensor("visual_projection.weight").float()

    @cached_property
    def logit_scale(self) -> float:
        """exp(logit_scale): the factor from cosines to logits."""
        return float(self.tensor("logit_scale").float().exp())

    def tensor(self, name: str) -> Tensor:
        """One of its tensors, a copy. Raises ModelError where it is no full CLIP."""
        places, _ = open_files(weights_file(self.folder))
        if name not in places:
            raise ModelError(f"{self.folder}: is no whole CLIP model: it lacks {name}")
        store, stored = places[name]
        return store.read(stored).clone()

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

    def text_model(self) -> "CLIPTextModelWithProjection":
        """The text tower, loaded anew: nobody needs it for longer than it takes to encode prompts."""
        return load_text_model(self.folder)

    def tokens(self, prompts: Sequence[str], length: int) -> list[list[int]]:
        """Token ids of each prompt, cut to `length`."""
        return self.tokenizer(list(prompts), truncation=True, max_length=length)["input_ids"]


def open_base(ref: str) -> ClipBase:
    """Locate a base with all that it needs. Raises LocateError, and ModelError for what has no text encoder."""
    folder = locate(ref, CLIP).folder
    if not is_full_clip(folder):
        raise ModelError(f"{ref}: is not a full CLIP model; a base needs its text encoder too")
    return ClipBase(ref, folder)


def known_base(geometry: Geometry | None, what: str) -> str:
    """The one known base of a geometry. Raises ModelError if there is none: then `base=` must name it."""
    key = geometry and (geometry.hidden_size, geometry.num_hidden_layers, geometry.patch_size, geometry.image_size)
    if key not in KNOWN_BASES:
        shape = geometry or "of unknown geometry"
        raise ModelError(f"{what}: no known base for {shape}; name it: base=org/name or base=./folder")
    return KNOWN_BASES[key]
