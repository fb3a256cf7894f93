"""Experts that have a projection of their own, as the task-arithmetic authors': then it is one more parameter."""

from collections.abc import Mapping

import torch

from clipfuse.checkpoints.checkpoint import Checkpoint
from clipfuse.checkpoints.names import PROJECTION
from clipfuse.checkpoints.store import Store

Stored = tuple[Store, str]


def with_projections(
    base: Checkpoint | None, experts: Mapping[str, Checkpoint]
) -> tuple[Checkpoint | None, dict[str, Checkpoint], list[str]]:
    """Base and experts with their projections as parameters if an expert's is not the base's, else as they are.

    An expert that stores none has the base's. The third value says in words what could not be told.
    """
    own = {name: expert.projection for name, expert in experts.items() if expert.projection and not expert.is_delta}
    given = (base.projection if base else None) or next(iter(own.values()), None)
    moved = any(PROJECTION in expert for expert in experts.values())
    if given is None or not (moved or any(not equal(given, other) for other in own.values())):
        return base, dict(experts), []
    if base is not None and base.projection is None:
        text = f"{', '.join(own)}: have projections of their own, the base stores none: they are left out of the merge"
        return base, dict(experts), [text]
    if base is None and len(own) < len(experts):
        lacking = next(name for name in experts if name not in own)
        return base, dict(experts), [f"{lacking}: stores no projection as others do: it is left out of the merge"]
    found = {name: e if e.is_delta else e.with_projection(instead=given) for name, e in experts.items()}
    return base.with_projection() if base else None, found, []


def equal(one: Stored, other: Stored) -> bool:
    """Whether two stored tensors hold the same values, whatever their dtypes."""
    mine, its = one[0].read(one[1]), other[0].read(other[1])
    return mine.shape == its.shape and torch.equal(mine.float(), its.float())
