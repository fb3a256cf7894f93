"""Isotropic merging: a flat spectrum, in a common space or in that and the tasks' own."""

import math
from collections import Counter
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from clipfuse.fusion.blocks import mean, total
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import DeltaConfig, Shape, method
from clipfuse.pool import Leaf
from clipfuse.shapes import Float
from clipfuse.stats.spectra import NOISE, Triplets, flops, leading, numerical_rank, polar, svd

ISO = Paper(
    "No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces",
    "Marczak, Daniel and Magistri, Simone and Cygert, Sebastian and Twardowski, Bartłomiej and Bagdanov, Andrew D."
    " and van de Weijer, Joost",
    2025,
    "2502.04959",
    "ICML",
)


class IsoC(DeltaConfig):
    """Δ = σ̄ · U Vᵀ of U Σ Vᵀ = SVD(Σ_k τ_k), σ̄ = mean Σ; of what is no matrix, mean_k τ_k."""


def work_of_iso_c(shape: Shape, experts: int, cfg: IsoC) -> float:
    return flops(shape)


@method(paper=ISO, grain="matrix", memory=(1.5, 11.0), work=work_of_iso_c)
def iso_c(leaf: Leaf, cfg: IsoC) -> Float[Tensor, "*shape"]:
    """Isotropic merging in the common subspace (Marczak et al., 2025).

    Per matrix, Σ_k τ_k = U Σ Vᵀ; all singular values become their mean: Δ = mean(Σ)·U Vᵀ. The rest: mean_k τ_k. One
    pass, one decomposition a matrix: U Vᵀ is the polar factor, and ⟨U Vᵀ, Σ_k τ_k⟩ the sum of the singular values.

    Deviations: the published figures are made with scaling_factor = 1.5; 1 is the default here, as in the code.
    Directions that Σ_k τ_k does not have (its rank is lower than r), which an SVD fills up arbitrarily, stay zero.

    Source: section 4.1, equation 5.
    """
    if not leaf.is_matrix:
        return mean(leaf.deltas)
    summed = total(leaf.deltas)
    flat = polar(summed, leaf.tally)
    return flat.mul_((flat * summed).sum(dtype=torch.float64) / min(summed.shape))


class IsoCts(DeltaConfig):
    """Δ = σ̄ · U⊥ V⊥ᵀ of the common and the tasks' own directions; of what is no matrix, mean_k τ_k."""

    common_space_fraction: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of the directions that is common."""


def own_directions(rank: int, experts: int, fraction: float) -> int:
    """Directions of a task's own: (r − k)/T with k = r − T·round((r − ⌊f·r⌋)/T), half to even; never more than r/T."""
    return min(round((rank - math.floor(fraction * rank)) / experts), rank // experts)


def work_of_iso_cts(shape: Shape, experts: int, cfg: IsoCts) -> float:
    """Three full decompositions, and one a task: of what is left of a wide matrix when the common space is out."""
    if len(shape) != 2:
        return 0.0
    rows, columns = shape
    left = round((1 - cfg.common_space_fraction) * rows) if rows <= columns else columns
    return 3 * flops(shape) + experts * (2 * rows * columns * left + flops((rows + columns - min(shape), left)))


@method(paper=ISO, grain="matrix", memory=(1.0, 15.0), work=work_of_iso_cts)
def iso_cts(leaf: Leaf, cfg: IsoCts) -> Float[Tensor, "*shape"]:
    """Isotropic merging in common and task-specific subspaces (Marczak et al., 2025).

    Per matrix with r = min(rows, columns): the k strongest directions of Σ_k τ_k are common; the common left space is
    projected out of each τ_k, whose (r − k)/T strongest directions are its own; all are put side by side, both sides
    replaced by their polar factors, and every singular value by the mean of all. So that the directions are r in all,
    k ← r − T·round((r − ⌊f·r⌋)/T), half to even. The rest: mean_k τ_k. One pass, T + 3 decompositions a matrix.

    Deviations: the published figures are made with scaling_factor = 1.5; 1 is the default here, as in the code.
    Directions that an SVD fills up arbitrarily, where a matrix has fewer than are asked for, stay zero; their singular
    values count as 0 in the mean.

    Source: section 4.2, algorithm 2.
    """
    if not leaf.is_matrix:
        return mean(leaf.deltas)
    rank, experts = min(leaf.deltas.shape[1:]), len(leaf.tasks)
    own = own_directions(rank, experts, cfg.common_space_fraction)
    summed = svd(total(leaf.deltas), leaf.tally)
    common = min(rank - experts * own, numerical_rank(summed))
    parts = [outside(summed.u, common, delta, own, leaf.tally) for delta in leaf.deltas]
    values = torch.cat([summed.s[:common], *(part.s for part in parts)])
    left = polar(torch.cat([part.u for part in parts], 1), leaf.tally)  # orthogonal to the common space already
    u = torch.cat([summed.u[:, :common], left], 1)
    vh = polar(torch.cat([summed.vh[:common], *(part.vh for part in parts)]), leaf.tally)
    return (u @ vh).mul_(values.sum(dtype=torch.float64) / rank)


def outside(
    u: Float[Tensor, "rows rank"], common: int, delta: Float[Tensor, "rows columns"], count: int, tally: Counter[str]
) -> Triplets:
    """The leading triplets of a task vector whose part in the first `common` directions of u is taken out.

    Where u is a whole basis, they are found in the directions that are left, which are few.
    """
    rows, columns = delta.shape
    if rows <= columns:
        rest = u[:, common:]
        found = leading(rest.mT @ delta, count, tally)
        found = Triplets(rest @ found.u, found.s, found.vh)
    else:
        found = leading(delta - u[:, :common] @ (u[:, :common].mT @ delta), count, tally)
    size = delta.norm() / min(rows, columns) ** 0.5  # at most the largest singular value
    some = int((found.s > NOISE * size).sum())
    return Triplets(found.u[:, :some], found.s[:some], found.vh[:some])
