"""A vision tower by itself: what another one is compared with, or was fine-tuned from; no text side is needed."""

from dataclasses import dataclass

from clipfuse.checkpoints.checkpoint import Checkpoint, open_checkpoint
from clipfuse.checkpoints.geometry import Geometry, find_geometry
from clipfuse.checkpoints.locate import locate


@dataclass(frozen=True)
class Tower:
    """An opened vision tower; its weights are not read."""

    ref: str
    """As a user writes it: a path or hub id."""
    checkpoint: Checkpoint
    geometry: Geometry


def open_tower(ref: str) -> Tower:
    """Locate and open a tower, or that of a full CLIP. Raises LocateError, CheckpointError."""
    at = locate(ref)
    checkpoint = open_checkpoint(at.folder, at.ref)
    return Tower(ref, checkpoint, find_geometry(at.folder, checkpoint))
