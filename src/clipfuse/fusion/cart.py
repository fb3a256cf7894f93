"""CART: what an expert has beyond the average, cut to its leading directions, added to the average."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from clipfuse.fusion.blocks import rank_of, total
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import DeltaConfig, Shape, method
from clipfuse.pool import Leaf
from clipfuse.shapes import Float
from clipfuse.stats.spectra import flops, leading

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


def work(shape: Shape, experts: int, cfg: Cart) -> float:
    """A decomposition for each expert."""
    return experts * flops(shape) if cfg.spread else 0.0


@method(paper=CART, grain="matrix", affine_in="spread", memory=(1.5, 7.0), work=work)
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
        u, s, vh = leading(delta - mean, rank, leaf.tally)
        merged.addmm_(u * s, vh, alpha=cfg.spread)
    return merged
