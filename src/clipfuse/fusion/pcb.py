"""PCB-Merging: entries compete within their task and with those of the other tasks."""

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from clipfuse.fusion.blocks import total
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import DeltaConfig, method
from clipfuse.pool import Leaf, PoolView
from clipfuse.shapes import Float
from clipfuse.stats.quantiles import entries, magnitudes, order_statistics

PCB = Paper(
    "Parameter Competition Balancing for Model Merging",
    "Du, Guodong and Lee, Junlin and Li, Jing and Jiang, Runhua and Guo, Yifei and Yu, Shuyang and others",
    2024,
    "2410.02396",
    "NeurIPS",
)
OUTLIERS = 1e-4
"""Share of a task vector's magnitudes that is clamped at either end."""
FLAT = 2.0**-12
"""Up to here tanh x = x in float32: x³/3 is less than half a unit in the last place."""


class PcbMerging(DeltaConfig):
    """Δ = Σ_k w_k τ̃_k / Σ_k w_k, w_k = minmax(max(s_k, its (1−keep)-quantile)), s_k = exp(T·a_k²)·tanh(τ_k Σ_j τ_j)."""

    scaling_factor: float = 1.2
    """λ in θ0 + λΔ, dimensionless."""
    keep: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of a task vector's entries that gets a weight above zero, counted over the whole model."""


@dataclass(frozen=True)
class Balance:
    """Limits over the whole model, one an expert: of |τ| and of the scores s."""

    low: list[float]
    high: list[float]
    floor: list[float]
    ceiling: list[float]


def weigh(view: PoolView, cfg: PcbMerging) -> Balance:
    """Limits of magnitudes, then of scores: a sample and, as a rule, one pass each."""
    size = entries(view)
    ends = [int(size * OUTLIERS) + 1, max(int(size * (1 - OUTLIERS) - 1), 0) + 1]
    low, high = order_statistics(view, magnitudes, ends).tolist()
    ranks = [min(int(size * (1 - cfg.keep)) + 1, size), size]
    floor, ceiling = order_statistics(view, lambda leaf: scores(leaf, low, high), ranks).tolist()
    return Balance(low, high, floor, ceiling)


def scores(leaf: Leaf, low: list[float], high: list[float]) -> Float[Tensor, "task *shape"]:
    """s_k = exp(T·a_k²)·tanh(τ_k Σ_j τ_j), a_k = minmax(|τ̃_k|)."""
    together, found = total(leaf.deltas), torch.empty_like(leaf.deltas)
    product = torch.empty_like(together)
    for row, out, least, most in zip(leaf.deltas, found, low, high, strict=True):
        torch.abs(row, out=out).clamp_(least, most).sub_(least).div_(most - least or 1.0)
        out.square_().mul_(len(leaf.tasks)).exp_().mul_(tanh_(torch.mul(row, together, out=product)))
    return found


def tanh_(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """tanh in place; most products of task vectors are so small that there is nothing to do."""
    low, high = x.aminmax()
    if max(-low, high) > FLAT:
        small = x.clamp(-FLAT, FLAT)
        x.copy_(torch.where(x == small, x, x.tanh()))
    return x


@method(paper=PCB, grain="element", prepare=weigh, passes=2)
def pcb_merging(leaf: Leaf, cfg: PcbMerging, balance: Balance) -> Float[Tensor, "*shape"]:
    """Parameter competition balancing (Du et al., 2024).

    τ̃_k = sign(τ_k)·clamp(|τ_k|, its 1e-4 and 1 − 1e-4 quantile); a_k = minmax(|τ̃_k|);
    s_k = exp(T·a_k²)·tanh(τ_k Σ_j τ_j);
    w_k = minmax(max(s_k, its (1 − keep)-quantile)), all over the whole model; Δ = Σ_k w_k τ̃_k / max(Σ_k w_k, 1e-12).
    Three passes after samples: limits of magnitudes, limits of scores, merge.

    Deviations: this is the published code, which the figures were made with; the paper's competition between tasks
    is a softmax. Quantiles are entries, not means of two: of d sorted ones number ⌊d/10⁴⌋, ⌊d·(1 − 1e-4) − 1⌋ and
    ⌊d·(1 − keep)⌋, counted from 0.

    Source: section 3, equations 2 to 5; github.com/duguodong7/pcb-merging.
    """
    together, weights = torch.zeros_like(leaf.deltas[0]), torch.zeros_like(leaf.deltas[0])
    limits = zip(balance.low, balance.high, balance.floor, balance.ceiling, strict=True)
    found = scores(leaf, balance.low, balance.high)
    clamped = torch.empty_like(together)
    for row, weight, (low, high, floor, ceiling) in zip(leaf.deltas, found, limits, strict=True):
        weight.clamp_min_(floor).sub_(floor).div_(ceiling - floor or 1.0)
        torch.abs(row, out=clamped).clamp_(low, high).mul_(row.sign())
        together.addcmul_(clamped, weight)
        weights += weight
    return together.div_(weights.clamp_min_(1e-12))
