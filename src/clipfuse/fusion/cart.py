"""CART: what an expert has beyond the average, cut to its leading directions, added to the average."""

import math
from typing import Annotated

from pydantic import Field
from torch import Tensor

from clipfuse.fusion.blocks import total
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import DeltaConfig, Shape, method
from clipfuse.pool import Leaf
from clipfuse.shapes import Float
from clipfuse.stats.spectra import leading

CART = Paper(
    "Revisiting Weight Averaging for Model Merging",
    "Choi, Jiho and Kim, Donggyun and Lee, Chanhyuk and Hong, Seunghoon",
    2024,
    "2412.12153",
    "arXiv",
)


class Cart(DeltaConfig):
    """Δ = mean_i τ_i + spread · Σ_i SVD_k(θ_i − mean_j θ_j), k = ⌈rank_fraction · r⌉, per matrix."""

    rank_fraction: Annotated[float, Field(gt=0, le=1)] = 0.08
    """Share of a matrix's r = min(rows, columns) singular triplets that every expert keeps."""
    spread: float = 1.0
    """Factor of what is added to the average, dimensionless."""


def rank_of(fraction: float, full: int) -> int:
    """⌈fraction · full⌉, at least 1, whatever binary floats make of it: 0.07 · 100 = 7.000000000000001 is 7."""
    return max(1, math.ceil(round(fraction * full, 9)))


def work(shape: Shape, experts: int, cfg: Cart) -> float:
    """A Gram matrix and its eigenvectors for each expert."""
    if len(shape) != 2:
        return 0.0
    return experts * min(shape) ** 2 * (2.0 * max(shape) + 9.0 * min(shape))


@method(paper=CART, grain="matrix", affine_in="spread", work=work)
def cart(leaf: Leaf, cfg: Cart) -> Float[Tensor, "*shape"]:
    """Centred arithmetic with rank-reduced task vectors (Choi et al., 2024).

    With θ̄ = mean_i θ_i, per matrix: Δ = mean_i τ_i + spread · Σ_i SVD_k(θ_i − θ̄), k = ⌈rank_fraction · r⌉ leading
    triplets of r = min(rows, columns); other parameters: the average. θ_i − θ̄ is τ_i − mean_j τ_j, so edits are seen.
    At rank_fraction = 1 the centred vectors cancel and the average is left. One pass; a decomposition for each expert
    and matrix; a sweep over `spread` does them once.

    Source: the paper's definition of CART, whose λ is `spread`.
    """
    merged = total(leaf.deltas).div_(len(leaf.tasks))
    if not leaf.is_matrix or not cfg.spread:
        return merged
    mean, rank = merged.clone(), rank_of(cfg.rank_fraction, min(merged.shape))
    for delta in leaf.deltas:
        u, s, vh = leading(delta - mean, rank)
        merged.addmm_(u * s, vh, alpha=cfg.spread)
    return merged
