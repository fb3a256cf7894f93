"""The plain rules, one expert at a time: mean, sum, TIES."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from clipfuse.fusion.blocks import total
from clipfuse.fusion.election import Election, hold_election, merge_elected
from clipfuse.fusion.paper import SOUPS, TASK_ARITHMETIC, TIES
from clipfuse.fusion.registry import ContinualConfig, Norms, method
from clipfuse.pool import Leaf, PoolView
from clipfuse.shapes import Float


class ContinualAverage(ContinualConfig):
    """Δ_t = (Σ_{k≤t} τ_k) / t."""


def one_of_many(norms: Norms) -> float:
    return 1 / len(norms.experts)


@method(paper=SOUPS, grain="element", continual=True, rescale=one_of_many)
def continual_average(leaf: Leaf, cfg: ContinualAverage) -> Float[Tensor, "*shape"]:
    """Mean of the experts' weights, one expert at a time (Wortsman et al., 2022).

    S_t = S_{t−1} + τ_t, Δ_t = S_t / t: simple_average to rounding. One pass over each expert. Unlike simple_average
    it needs a base, which only an edit or a finish makes a difference to.

    Source: uniform soup, section 2.
    """
    return total(leaf.deltas)


class ContinualTaskArithmetic(ContinualConfig):
    """Δ_t = Σ_{k≤t} τ_k."""

    scaling_factor: float = 0.3
    """λ in θ0 + λΔ, dimensionless."""


@method(paper=TASK_ARITHMETIC, grain="element", continual=True)
def continual_task_arithmetic(leaf: Leaf, cfg: ContinualTaskArithmetic) -> Float[Tensor, "*shape"]:
    """Sum of task vectors, one expert at a time (Ilharco et al., 2023).

    S_t = S_{t−1} + τ_t, Δ_t = S_t: task_arithmetic to rounding. One pass over each expert.

    Source: section 2; λ = 0.3 as in section 4.2.
    """
    return total(leaf.deltas)


class ContinualTies(ContinualConfig):
    """Δ_t = TIES(Δ_{t−1}, τ_t), or Δ_t = Δ_{t−1} + TIES(c·Δ_{t−1}, τ_t)."""

    scaling_factor: float = 0.3
    """λ in θ0 + λΔ, dimensionless."""
    keep: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of entries that is kept, of what is merged so far and of a task vector, counted over the whole model."""
    merge: Literal["sum", "mean"] = "sum"
    """How agreeing entries are combined."""
    accumulate: float | None = None
    """c: add what is elected between c times what is merged so far and the next expert, as published with c = λ = 0.5;
    none puts what is elected into its place."""


def before_the_election(view: PoolView, cfg: ContinualTies) -> PoolView:
    """The pair of what is merged so far, times c, and the next expert."""
    return view.through((*view.edits, lambda leaf: weighted(leaf, cfg)), view.grain)


def weighted(leaf: Leaf, cfg: ContinualTies) -> Float[Tensor, "task *shape"]:
    rows = leaf.deltas
    if cfg.accumulate is not None:
        rows = rows.clone()
        rows[0].mul_(cfg.accumulate)
    return rows


def call_election(view: PoolView, cfg: ContinualTies) -> Election:
    return hold_election(before_the_election(view, cfg), cfg.keep)


@method(paper=TIES, grain="element", continual=True, prepare=call_election, passes=2)
def continual_ties(leaf: Leaf, cfg: ContinualTies, election: Election) -> Float[Tensor, "*shape"]:
    """TIES-Merging of what is merged so far and the next expert (Yadav et al., 2023).

    S_1 = τ_1, S_t = TIES(S_{t−1}, τ_t): the trimming, election and merge of ties_merging on two members. With
    `accumulate=c`, S_t = S_{t−1} + TIES(c·S_{t−1}, τ_t). Three passes over each expert and over what is merged.

    Deviations: the figures of continual TIES (Tang et al., 2025) come from θ_t = θ_{t−1} + λ·TIES(θ_{t−1} − θ0, τ_t)
    with θ_1 = θ0 + λτ_1 and λ = 0.5, which counts what is merged once more with every expert; that is
    `accumulate=0.5 scaling_factor=0.5`.

    Source: algorithm 1, on two members.
    """
    elected = merge_elected(weighted(leaf, cfg), election, cfg.merge)
    return elected if cfg.accumulate is None else elected.add_(leaf.deltas[0])
