"""Kinds of models in a pool: full weights, adapters, and linearised ones, which have a forward pass of their own."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from clipfuse.checkpoints.geometry import Geometry, is_linearised
from clipfuse.checkpoints.locate import ADAPTER
from clipfuse.errors import PoolError
from clipfuse.pool.config import Member


def check_kind(member: Member, folder: Path) -> None:
    """Raises PoolError for a model that is of another kind than its pool says."""
    if member.kind is None:
        return
    found = "lora" if (folder / ADAPTER).is_file() else "linearised" if is_linearised(folder) else "full"
    if member.kind != found:
        raise PoolError(f"{member.name}: kind is {member.kind} in the pool, its files are {found}")


def all_linearised(tasks: Iterable[str], geometries: Mapping[str, Geometry]) -> bool:
    """Whether the experts of a pool are linearised. One whose geometry is not known is not. PoolError: some are."""
    ours: dict[bool, str] = {}
    for task in tasks:
        ours.setdefault(task in geometries and geometries[task].linearised, task)
    if len(ours) > 1:
        raise PoolError(f"{ours[True]} is linearised, {ours[False]} is not: a merge has one forward pass")
    return True in ours
