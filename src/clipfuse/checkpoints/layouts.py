"""From the names that tensors are stored under to our canonical ones, whatever library wrote them.

What is found is told by the names' structure, never by a version.
"""

from collections.abc import Iterable, Mapping

from clipfuse.checkpoints.names import PROJECTION, canonical_names
from clipfuse.checkpoints.openclip import COUNTED, TEXT, VISION, bare_tower, ours, outer_prefix
from clipfuse.checkpoints.parts import PartStore
from clipfuse.checkpoints.store import Store
from clipfuse.errors import CheckpointError

Places = dict[str, tuple[Store, str]]
"""Name → where its tensor is and what it is called there."""

BESIDE = ("classification_head.", "train_preprocess.", "val_preprocess.")
"""What the task-arithmetic authors' modules hold beside the model."""


def tower_places(stored: Mapping[str, tuple[Store, str]], where: str) -> Places:
    """The vision tower's parameters, and the projection behind it where it is stored, by canonical name.

    Raises:
        CheckpointError: the names are not those of a CLIP vision encoder.
    """
    if (known := openclip_places(stored, where)) is None:
        found = {name: stored[place] for name, place in canonical_names(stored, where).items()}
        return found | ({PROJECTION: stored[PROJECTION]} if PROJECTION in stored else {})
    tower = {name.removeprefix(VISION): place for name, place in known.items() if name.startswith(VISION)}
    return tower | ({PROJECTION: known[PROJECTION]} if PROJECTION in known else {})


def openclip_places(stored: Mapping[str, tuple[Store, str]], where: str) -> Places | None:
    """All parameters of a checkpoint in OpenCLIP's layout by a CLIPModel's names; None if it has another layout.

    Raises:
        CheckpointError: tensors that do not belong to a CLIP, or whose shapes do not fit.
    """
    outer = "" if bare_tower(stored) else outer_prefix(stored)
    if outer is None:
        return None
    inner = "visual." if bare_tower(stored) else ""
    found: Places = {}
    strangers = []
    for name, (store, place) in stored.items():
        bare = inner + name.removeprefix(outer)
        parameters = ours(bare) if name.startswith(outer) else []
        if not parameters and not is_counted(bare) and not name.startswith(BESIDE):
            strangers.append(name)
        for parameter, part in parameters:
            at = (store, place) if part == "whole" else (PartStore(store, place, part, where), place)
            found[parameter] = at
    refuse_strangers(strangers, where)
    return found


def text_places(stored: Mapping[str, tuple[Store, str]], where: str) -> Places:
    """The text encoder, its projection and logit_scale by a CLIPModel's names; empty where a file has no text encoder.

    Raises:
        CheckpointError: as `openclip_places`.
    """
    known = openclip_places(stored, where) or dict(stored)
    if not any(name.startswith(f"{TEXT}encoder.") for name in known):
        return {}
    named = {name: place for name, place in known.items() if name.startswith((TEXT, "text_projection.", "logit_scale"))}
    return {name: place for name, place in named.items() if not name.endswith(".position_ids")}


def is_counted(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in COUNTED


def refuse_strangers(strangers: Iterable[str], where: str) -> None:
    if odd := sorted(strangers):
        raise CheckpointError(f"{where}: {len(odd)} tensors do not belong to a CLIP model, e.g. {odd[0]!r}")
