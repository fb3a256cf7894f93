"""MagMax: of all task vectors, the entry of largest magnitude."""

import torch
from torch import Tensor

from clipfuse.fusion.registry import DeltaConfig, Paper, method
from clipfuse.pool import Leaf
from clipfuse.shapes import Float

MAGMAX = Paper(
    "MagMax: Leveraging Model Merging for Seamless Continual Learning",
    "Marczak, Daniel and Twardowski, Bartłomiej and Trzciński, Tomasz and Cygert, Sebastian",
    2024,
    "2407.06322",
    "ECCV",
)


class MagMax(DeltaConfig):
    """Δ[j] = τ_i[j] with i = argmax_k |τ_k[j]|."""

    scaling_factor: float = 0.5
    """λ in θ0 + λΔ, dimensionless."""


@method(paper=MAGMAX, grain="element")
def magmax(leaf: Leaf, cfg: MagMax) -> Float[Tensor, "*shape"]:
    """Entry of the largest magnitude over the task vectors (Marczak et al., 2024).

    Δ[j] = τ_i[j], i = argmax_k |τ_k[j]|; on exactly equal magnitudes the later expert wins. One pass.

    Deviations: the paper fine-tunes sequentially; here any experts of one base are taken.

    Source: equation 2.
    """
    chosen, size = leaf.deltas[0].clone(), leaf.deltas[0].abs()
    for delta in leaf.deltas[1:]:
        magnitude = delta.abs()
        wins = magnitude >= size
        chosen = torch.where(wins, delta, chosen)
        size = torch.maximum(size, magnitude)
    return chosen
