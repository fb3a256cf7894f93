"""DELLA: drop entries of task vectors at random, small ones rather than large ones, and rescale what is kept."""

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from clipfuse.config import Config
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.random_bits import keep_at_random
from clipfuse.fusion.registry import edit
from clipfuse.pool import Leaf
from clipfuse.shapes import Float
from clipfuse.stats.ranks import places_by_magnitude

DELLA = Paper(
    "DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based Sampling",
    "Deep, Pala Tej and Bhardwaj, Rishabh and Poria, Soujanya",
    2024,
    "2406.11617",
)
PIECE = 65_536
"""Entries of whole rows that are worked on at a time, as far as rows allow: they stay in cache."""


class Della(Config):
    """τ ← τ ⊙ m / q, m ~ Bernoulli(q), q linear in the rank of |τ| within its row."""

    density: Annotated[float, Field(gt=0, le=1, examples=[0.5])]
    """Mean probability with which an entry is kept."""
    epsilon: Annotated[float, Field(ge=0, examples=[0.2])]
    """How far probabilities reach around `density`."""
    range: Literal["mergekit", "paper"] = "mergekit"
    """`mergekit`: from density − epsilon to density + epsilon; `paper`: half as far."""

    @property
    def reach(self) -> float:
        """The largest probability less `density`."""
        return self.epsilon if self.range == "mergekit" else self.epsilon / 2

    @model_validator(mode="after")
    def are_probabilities(self) -> "Della":
        low, high = self.density - self.reach, self.density + self.reach
        if low <= 0 or high > 1:
            raise ValueError(f"probabilities from {low:g} to {high:g} must lie in (0, 1]")
        return self


@edit(paper=DELLA, grain="leaf", memory=(3.0, 0.0))
def della(leaf: Leaf, cfg: Della) -> Float[Tensor, "task *shape"]:
    """Drop by magnitude and rescale, MagPrune (Deep et al., 2024).

    τ_j ← τ_j m_j / q_j, m_j ~ Bernoulli(q_j), q_j = density + reach·(2r_j/(n−1) − 1) for the rank r_j = 0 … n−1 of
    |τ_j| among the n entries of its row, equal ones ranked by place. A row is what has one first index; a 1-D tensor
    is one row. Probabilities are realised in 1/65536 and at least that, and entries are divided by the realised one:
    the expectation is τ. How many entries were kept is recorded; draws are those of dare. One pass, a sort of each row.

    Deviations: `reach` is epsilon as in mergekit, with which the method is mostly used; the paper's is epsilon/2
    (`range=paper`), in steps of epsilon/n that stop one short of the upper end. Further steps of the paper (elect,
    fuse) are the rule that follows. A row of one entry keeps it with the lowest probability.

    Source: MagPrune, step 1 (drop).
    """
    kept = leaf.deltas.new_empty(leaf.deltas.shape)
    shape = (len(leaf.deltas[0]), -1) if leaf.deltas.ndim > 2 else (1, -1)
    ramp = probabilities(leaf.numel // shape[0], cfg).to(kept.device)
    rows = max(1, PIECE // len(ramp))
    for deltas, out, task in zip(leaf.deltas, kept, leaf.tasks, strict=True):
        pieces = zip(deltas.reshape(shape).split(rows), out.view(shape).split(rows), strict=True)
        count, start = 0, leaf.start
        for piece, target in pieces:
            places = places_by_magnitude(piece)
            chance = torch.empty_like(piece).scatter_(1, places, ramp.expand_as(places))  # in 1/65536
            count += keep_at_random(leaf.stream(task), start, (65536 - chance).view(-1), target.view(-1))
            target.mul_(piece).mul_(65536).div_(chance)
            start += piece.numel()
        leaf.tally[f"della.kept.{task}"] += count
        leaf.tally[f"della.of.{task}"] += leaf.numel
    return kept


def probabilities(count: int, cfg: Della) -> Float[Tensor, "count"]:
    """Probability of keeping the smallest to the largest entry of a row, in whole 1/65536."""
    low, high = cfg.density - cfg.reach, cfg.density + cfg.reach
    return torch.linspace(low, high, count, dtype=torch.float64).mul_(65536).round_().clamp_(1, 65536).float()
