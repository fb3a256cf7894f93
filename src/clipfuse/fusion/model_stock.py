"""Model Stock: how far to go from the base to the mean of the experts, from the angle between them."""

import math
from typing import Literal

import torch
from torch import Tensor

from clipfuse.fusion.blocks import mean
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import DeltaConfig, method
from clipfuse.pool import Leaf, PoolView
from clipfuse.shapes import Float
from clipfuse.stats.norms import grams

MODEL_STOCK = Paper(
    "Model Stock: All we need is just a few fine-tuned models",
    "Jang, Dong-Hwan and Yun, Sangdoo and Han, Dongyoon",
    2024,
    "2403.19522",
    "ECCV",
)
POLE = 1e-6
"""At (T − 1)·cos θ + 1 = 0 the task vectors cancel, and beyond it there are none: r counts as 0 up to here."""


class ModelStock(DeltaConfig):
    """Δ = r·mean_k τ_k per tensor, r = T·cos θ / ((T − 1)·cos θ + 1)."""

    angle: Literal["mean_angle", "mean_cosine"] = "mean_angle"
    """How θ is made of the angles of all pairs: their mean (as published), or the angle of their mean cosine."""


def ratios(view: PoolView, cfg: ModelStock) -> dict[str, float]:
    return {name: ratio(gram, cfg.angle) for name, gram in grams(view).items()}


def ratio(gram: Float[Tensor, "task task"], angle: str) -> float:
    """r of one tensor from the inner products of its task vectors; 1 for a single expert."""
    count = len(gram)
    if count == 1:
        return 1.0
    norms = gram.diagonal().sqrt()
    above = torch.triu_indices(count, count, 1)
    lengths = norms[above[0]] * norms[above[1]]
    cosines = torch.where(lengths > 0, gram[above[0], above[1]] / lengths, 0).clamp(-1, 1)
    cosine = math.cos(float(cosines.acos().mean())) if angle == "mean_angle" else float(cosines.mean())
    below = (count - 1) * cosine + 1
    return count * cosine / below if below > POLE else 0.0


@method(paper=MODEL_STOCK, grain="element", prepare=ratios, passes=1)
def model_stock(leaf: Leaf, cfg: ModelStock, ratios: dict[str, float]) -> Float[Tensor, "*shape"]:
    """Towards the centre of the experts (Jang et al., 2024).

    Per tensor Δ = r·mean_k τ_k, r = T·cos θ / ((T − 1)·cos θ + 1), θ the angle between task vectors: the mean of
    the angles of all pairs. A pair with a zero vector has cosine 0. Two passes: inner products in float64, merge.

    Deviations: the paper has one θ, that of equally long vectors at equal angles, and fine-tunes between merges; the
    published figures of the field merge once, with the mean of the pairs' angles (`angle=mean_cosine` takes the
    angle of the mean cosine). Where the denominator is at most 1e-6 the task vectors cancel, and r is 0.

    Source: section 4.2, equation 7.
    """
    return mean(leaf.deltas).mul_(ratios[leaf.name])
