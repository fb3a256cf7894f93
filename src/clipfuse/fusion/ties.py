"""TIES-Merging: trim small entries, elect a sign, merge what agrees with it."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from clipfuse.fusion.election import Election, hold_election, merge_elected
from clipfuse.fusion.paper import TIES
from clipfuse.fusion.registry import DeltaConfig, method
from clipfuse.pool import Leaf, PoolView
from clipfuse.shapes import Float


class Ties(DeltaConfig):
    """Δ = Σ_k or mean_k of the trimmed τ_k[j] whose sign is sign(Σ_k trimmed τ_k[j])."""

    scaling_factor: float = 0.3
    """λ in θ0 + λΔ, dimensionless."""
    keep: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of a task vector's entries that is kept, counted over the whole model."""
    merge: Literal["sum", "mean"] = "sum"
    """How agreeing entries are combined: `sum` as the published figures, disjoint `mean` as in the paper."""


def call_election(view: PoolView, cfg: Ties) -> Election:
    return hold_election(view, cfg.keep)


@method(paper=TIES, grain="element", prepare=call_election, passes=2)
def ties_merging(leaf: Leaf, cfg: Ties, election: Election) -> Float[Tensor, "*shape"]:
    """Task arithmetic without interference (Yadav et al., 2023).

    Trim τ_k to |τ_k| ≥ its (d − ⌊keep·d⌋)-th smallest magnitude over all d entries of the model (keep = 1 keeps
    everything); elect s = sign(Σ_k τ_k), zeros take the majority sign of the model; Δ = sum or mean of the trimmed
    entries whose sign is s. Three passes: one for the floors (after a sample), one for the majority, one to merge.

    Deviations: the paper merges by the disjoint mean with λ = 1 (`merge=mean scaling_factor=1`); the figures that
    the field compares with are made with the disjoint sum and λ = 0.3, which is the default.

    Source: algorithm 1.
    """
    return merge_elected(leaf.deltas, election, cfg.merge)
