"""MagMax: of all task vectors, the entry of largest magnitude."""

import torch
from torch import Tensor

from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import DeltaConfig, method
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
    highest, lowest = leaf.deltas.amax(0), leaf.deltas.amin(0)
    side = (highest + lowest).sign_()  # which of the two has the larger magnitude; masks are ten times slower
    chosen = torch.lerp(lowest, highest, side.clamp_min(0))
    if not side.abs_().amin():
        tied = (side == 0).logical_and_(highest != 0)
        rows = leaf.deltas[:, tied].flip(0)
        latest = (rows.abs() == highest[tied]).to(torch.int8).argmax(0)
        chosen[tied] = rows.gather(0, latest[None])[0]
    return chosen
