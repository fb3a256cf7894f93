"""TIES-Merging: trim small entries, elect a sign, merge what agrees with it."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from clipfuse.fusion.blocks import total
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import DeltaConfig, method
from clipfuse.pool import Leaf, PoolView
from clipfuse.shapes import Float
from clipfuse.stats.quantiles import kth_magnitudes

TIES = Paper(
    "TIES-Merging: Resolving Interference When Merging Models",
    "Yadav, Prateek and Tam, Derek and Choshen, Leshem and Raffel, Colin and Bansal, Mohit",
    2023,
    "2306.01708",
    "NeurIPS",
)


class Ties(DeltaConfig):
    """Δ = Σ_k or mean_k of the trimmed τ_k[j] whose sign is sign(Σ_k trimmed τ_k[j])."""

    scaling_factor: float = 0.3
    """λ in θ0 + λΔ, dimensionless."""
    keep: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of a task vector's entries that is kept, counted over the whole model."""
    merge: Literal["sum", "mean"] = "sum"
    """How agreeing entries are combined: `sum` as the published figures, disjoint `mean` as in the paper."""


@dataclass(frozen=True)
class Election:
    """What the whole model says: the magnitude from which an entry stays, per expert, and the majority sign."""

    floors: Float[Tensor, "task"]
    majority: float


def hold_election(view: PoolView, cfg: Ties) -> Election:
    """Floors in a sample and, as a rule, one pass; the majority sign in one more, which counts elected signs."""
    floors = kth_magnitudes(view, cfg.keep) if cfg.keep < 1 else torch.zeros(len(view.tasks))
    ballot = sum(view.map(lambda leaf: int(total(trim(leaf.deltas, floors)).sign_().sum())))
    return Election(floors, float((ballot > 0) - (ballot < 0)))


@method(paper=TIES, grain="element", prepare=hold_election, passes=2)
def ties_merging(leaf: Leaf, cfg: Ties, election: Election) -> Float[Tensor, "*shape"]:
    """Task arithmetic without interference (Yadav et al., 2023).

    Trim τ_k to |τ_k| ≥ its (d − ⌊keep·d⌋)-th smallest magnitude over all d entries of the model (keep = 1 keeps
    everything); elect s = sign(Σ_k τ_k), zeros take the majority sign of the model; Δ = sum or mean of the trimmed
    entries whose sign is s. Three passes: one for the floors (after a sample), one for the majority, one to merge.

    Deviations: the paper merges by the disjoint mean with λ = 1 (`merge=mean scaling_factor=1`); the figures that
    the field compares with are made with the disjoint sum and λ = 0.3, which is the default.

    Source: algorithm 1.
    """
    trimmed = trim(leaf.deltas, election.floors)
    sign = total(trimmed).sign_()
    sign[sign == 0] = election.majority
    agreeing = trimmed.mul_(sign).clamp_min_(0)  # |entry| where the signs agree, else 0
    merged = total(agreeing).mul_(sign)
    return merged if cfg.merge == "sum" else merged.div_(total(agreeing.sign_()).clamp_min_(1))


def trim(deltas: Float[Tensor, "task *shape"], floors: Float[Tensor, "task"]) -> Float[Tensor, "task *shape"]:
    """A copy with the entries below their expert's floor set to zero."""
    trimmed = torch.empty_like(deltas)
    for row, out, floor in zip(deltas, trimmed, floors, strict=True):
        if floor > 0:  # hardshrink drops up to and including its limit
            torch.hardshrink(row, float(torch.nextafter(floor, torch.zeros(()))), out=out)
        else:
            out.copy_(row)
    return trimmed
