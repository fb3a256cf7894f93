"""Consensus merging: entries that more than one task has use for."""

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from clipfuse.errors import ConfigError
from clipfuse.fusion.blocks import total, weight_row
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import DeltaConfig, method
from clipfuse.pool import Leaf, PoolView
from clipfuse.shapes import Float

CONSENSUS = Paper(
    "Localizing Task Information for Improved Model Merging and Compression",
    "Wang, Ke and Dimitriadis, Nikolaos and Ortiz-Jimenez, Guillermo and Fleuret, François and Frossard, Pascal",
    2024,
    "2405.07813",
    "ICML",
)
Share = Annotated[float, Field(ge=0)]


class Consensus(DeltaConfig):
    """Δ = Σ_k τ_k where at least k masks 1[|τ_i| > t_i·|Σ_j τ_j − τ_i|] are 1, else 0."""

    scaling_factor: float = 0.3
    """λ in θ0 + λΔ, dimensionless."""
    t: Share | Mapping[str, Share] | Sequence[Share] = 0.4
    """How large an entry is against the sum of the others' to count: one number, or one an expert."""
    k: Annotated[int, Field(ge=1)] = 2
    """Masks that must agree on an entry."""


def thresholds(view: PoolView, cfg: Consensus) -> list[float]:
    if cfg.k > len(view.tasks):
        raise ConfigError(f"method.k: {cfg.k} masks cannot agree where there are {len(view.tasks)} experts")
    return [cfg.t] * len(view.tasks) if isinstance(cfg.t, (int, float)) else weight_row(cfg.t, view.tasks, "t")


@method(paper=CONSENSUS, grain="element", prepare=thresholds)
def consensus(leaf: Leaf, cfg: Consensus, thresholds: list[float]) -> Float[Tensor, "*shape"]:
    """TALL-mask consensus (Wang et al., 2024).

    mask_i = 1[|τ_i| > t_i·|Σ_j τ_j − τ_i|]; Δ keeps the entries of Σ_j τ_j that at least k masks select: with k = 2,
    neither "catastrophic" entries, which no task wants, nor "selfish" ones. One pass.

    Deviations: the paper chooses t for each task on validation data; here it is given.

    Raises:
        ConfigError: `t` that does not fit the pool's experts, or a `k` of more than there are.

    Source: sections 3 and 4, equations 4 and 5.
    """
    together = total(leaf.deltas)
    votes, others, vote = (torch.empty_like(together) for _ in range(3))
    votes.zero_()
    for row, threshold in zip(leaf.deltas, thresholds, strict=True):
        torch.sub(together, row, out=others).abs_().mul_(threshold)
        votes += torch.abs(row, out=vote).gt_(others)  # 0 or 1 as floats; masks are ten times slower
    return together.mul_(votes.ge_(cfg.k))
