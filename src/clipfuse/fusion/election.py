"""Trim, elect a sign, merge what agrees with it: the steps of TIES, which more than one rule takes."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from clipfuse.fusion.blocks import total
from clipfuse.pool import PoolView
from clipfuse.shapes import Float
from clipfuse.stats.quantiles import kth_magnitudes


@dataclass(frozen=True)
class Election:
    """What the whole model says: the magnitude from which an entry stays, per expert, and the majority sign."""

    floors: Float[Tensor, "task"]
    majority: float


def hold_election(view: PoolView, keep: float) -> Election:
    """Floors in a sample and, as a rule, one pass; the majority sign in one more, which counts elected signs."""
    floors = kth_magnitudes(view, keep) if keep < 1 else torch.zeros(len(view.tasks))
    ballot = sum(view.map(lambda leaf: int(total(trim(leaf.deltas, floors)).sign_().sum())))
    return Election(floors, float((ballot > 0) - (ballot < 0)))


def trim(deltas: Float[Tensor, "task *shape"], floors: Float[Tensor, "task"]) -> Float[Tensor, "task *shape"]:
    """A copy with the entries below their expert's floor set to zero."""
    trimmed = torch.empty_like(deltas)
    limits = torch.nextafter(floors, torch.zeros(())).tolist()  # hardshrink drops up to and including its limit
    for row, out, floor, limit in zip(deltas, trimmed, floors.tolist(), limits, strict=True):
        if floor > 0:
            torch.hardshrink(row, limit, out=out)
        else:
            out.copy_(row)
    return trimmed


def agreeing(deltas: Float[Tensor, "task *shape"], election: Election) -> tuple[Tensor, Tensor]:
    """Trim, elect sign(Σ_k trimmed τ_k) (zeros take the majority): |τ_k| where its sign is that, else 0; the sign."""
    trimmed = trim(deltas, election.floors)
    sign = total(trimmed).sign_()
    sign.add_(sign.abs().sub_(1), alpha=-election.majority)  # masks are ten times slower
    return trimmed.mul_(sign).clamp_min_(0), sign


def merge_elected(
    deltas: Float[Tensor, "task *shape"], election: Election, merge: Literal["sum", "mean"]
) -> Float[Tensor, "*shape"]:
    """Sum or average the entries that have the elected sign."""
    sizes, sign = agreeing(deltas, election)
    merged = total(sizes).mul_(sign)
    return merged if merge == "sum" else merged.div_(total(sizes.sign_()).clamp_min_(1))
