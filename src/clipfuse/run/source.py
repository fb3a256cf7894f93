"""A model of any format, opened to be written in another one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from clipfuse.checkpoints.applied import applied
from clipfuse.checkpoints.checkpoint import Checkpoint, open_checkpoint, open_files, weights_file
from clipfuse.checkpoints.geometry import Geometry, find_geometry
from clipfuse.checkpoints.layouts import Places, text_places
from clipfuse.checkpoints.locate import Located
from clipfuse.checkpoints.lora import is_adapter
from clipfuse.checkpoints.names import PROJECTION, hub_name
from clipfuse.errors import ModelError
from clipfuse.models.clip_base import ClipBase, open_base
from clipfuse.models.encoder import check_fits
from clipfuse.models.tower import Tower, open_tower
from clipfuse.run.models import base_of, tower_of

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
    def tower(self) -> Tower:
        """What the model is a difference from."""
        return open_tower(tower_of(self.at, self.given))

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Its full vision tower."""
        base = self.tower.checkpoint if is_adapter(self.at.folder) else None
        found = open_checkpoint(self.at.folder, self.at.ref, base)
        return applied(base, found) if base else found

    @cached_property
    def geometry(self) -> Geometry:
        adapted = is_adapter(self.at.folder)
        return self.tower.geometry if adapted else find_geometry(self.at.folder, self.checkpoint)

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
        text = self.own_text
        if not text:
            check_fits(self.geometry, self.base, self.at.ref)
            text = text_places(open_files(weights_file(self.base.folder))[0], self.base.ref)
        weights = self.checkpoint.with_projection()
        if PROJECTION not in weights:
            weights = weights.with_projection(self.base.checkpoint.projection)
        if PROJECTION not in weights or not text:
            raise ModelError(
                f"{self.base.ref}: is not a full CLIP model; a base needs its text encoder and projections"
            )
        found = {hub_name(name): place for name, place in weights.places.items()} | text
        store, at = found["text_projection.weight"]
        if (mine := weights.spec(PROJECTION).shape[0]) != (its := store.specs[at].shape[0]):
            raise ModelError(f"{self.at.ref}: its projection is {mine} wide, that of {self.base.ref}'s text {its}")
        return found
