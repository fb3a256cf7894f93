"""TSV-Merge: the strongest singular triplets of every task, made orthogonal to one another."""

import torch
from torch import Tensor

from clipfuse.fusion.blocks import mean
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import DeltaConfig, Shape, method
from clipfuse.pool import Leaf
from clipfuse.shapes import Float
from clipfuse.stats.spectra import flops, leading, polar

TSV = Paper(
    "Task Singular Vectors: Reducing Task Interference in Model Merging",
    "Gargiulo, Antonio Andrea and Crisostomi, Donato and Bucarelli, Maria Sofia and Scardapane, Simone"
    " and Silvestri, Fabrizio and Rodolà, Emanuele",
    2025,
    "2412.00081",
    "CVPR",
)


class TsvMerging(DeltaConfig):
    """Δ = U⊥ diag(S) V⊥ᵀ of the tasks' ⌊r/T⌋ strongest singular triplets; of what is no matrix, mean_k τ_k."""


def work(shape: Shape, experts: int, cfg: TsvMerging) -> float:
    """A decomposition for each task and two of what they give together."""
    return (experts + 2) * flops(shape)


@method(paper=TSV, grain="matrix", memory=(1.0, 14.0), work=work)
def tsv_merging(leaf: Leaf, cfg: TsvMerging) -> Float[Tensor, "*shape"]:
    """Task singular vectors without interference (Gargiulo et al., 2025).

    Per matrix, keep of each τ_k its k = ⌊r/T⌋ largest singular triplets, r = min(rows, columns); put them side by side,
    U = [U_1 … U_T], S, V; replace U and V by their polar factors P Qᵀ (U = P Σ Qᵀ); Δ = U⊥ diag(S) V⊥ᵀ. Biases,
    LayerNorms, the class embedding and the patch convolution: mean_k τ_k. One pass, T + 2 decompositions a matrix.

    Deviations: what an SVD fills up arbitrarily takes no part: triplets of a τ_k of lower rank than k, and directions
    that the tasks share to rounding, so that T times the same τ give its leading triplets. With more experts than r no
    triplet is left, and Δ is zero there.

    Source: section 4.2, algorithm 1.
    """
    if not leaf.is_matrix:
        return mean(leaf.deltas)
    count = min(leaf.deltas.shape[1:]) // len(leaf.tasks)
    found = [leading(delta, count, leaf.tally) for delta in leaf.deltas]
    u = polar(torch.cat([triplets.u for triplets in found], 1), leaf.tally)
    vh = polar(torch.cat([triplets.vh for triplets in found], 0), leaf.tally)
    return (u * torch.cat([triplets.s for triplets in found])) @ vh
