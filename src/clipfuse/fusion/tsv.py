"""TSV-Merge: the strongest singular triplets of every task, made orthogonal to one another."""

import torch
from torch import Tensor

from clipfuse.fusion.blocks import mean
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import DeltaConfig, Shape, method
from clipfuse.pool import Leaf
from clipfuse.shapes import Float
from clipfuse.stats.spectra import leading, polar

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


def flops(shape: Shape, experts: int, cfg: TsvMerging) -> float:
    """A Gram matrix and its eigenvectors for each task, two polar factors, and the product."""
    if len(shape) != 2:
        return 0.0
    long, short = max(shape), min(shape)
    return experts * (2.0 * long * short**2 + 9 * short**3) + 2.0 * (4 * long * short**2 + 9 * short**3)


@method(paper=TSV, grain="matrix", memory=3.0, work=flops)
def tsv_merging(leaf: Leaf, cfg: TsvMerging) -> Float[Tensor, "*shape"]:
    """Task singular vectors without interference (Gargiulo et al., 2025).

    Per matrix, keep of each τ_k its k = ⌊r/T⌋ largest singular triplets, r = min(rows, columns); put them side by side,
    U = [U_1 … U_T], S, V; replace U and V by their polar factors P Qᵀ (U = P Σ Qᵀ); Δ = U⊥ diag(S) V⊥ᵀ. Biases,
    LayerNorms, the class embedding and the patch convolution: mean_k τ_k. One pass, one decomposition for each
    expert and matrix.

    Deviations: none from the published code's rule; with more experts than r no triplet is left, and Δ is zero there.

    Source: section 4.2, algorithm 1.
    """
    if not leaf.is_matrix:
        return mean(leaf.deltas)
    count = min(leaf.deltas.shape[1:]) // len(leaf.tasks)
    found = [leading(delta, count, leaf.tally) for delta in leaf.deltas]
    u = polar(torch.cat([triplets.u for triplets in found], 1), leaf.tally)
    vh = polar(torch.cat([triplets.vh for triplets in found], 0), leaf.tally)
    return (u * torch.cat([triplets.s for triplets in found])) @ vh
