"""Isotropic merging: a flat spectrum, in a common space or in that and the tasks' own."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from clipfuse.fusion.blocks import mean, total
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import DeltaConfig, Shape, method
from clipfuse.pool import Leaf
from clipfuse.shapes import Float
from clipfuse.stats.spectra import leading, polar, svd

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


def one_svd(shape: Shape, experts: int, cfg: DeltaConfig) -> float:
    return 4.0 * max(shape) * min(shape) ** 2 + 9.0 * min(shape) ** 3 if len(shape) == 2 else 0.0


@method(paper=ISO, grain="matrix", memory=2.0, work=one_svd)
def iso_c(leaf: Leaf, cfg: IsoC) -> Float[Tensor, "*shape"]:
    """Isotropic merging in the common subspace (Marczak et al., 2025).

    Per matrix, Σ_k τ_k = U Σ Vᵀ; all singular values become their mean: Δ = mean(Σ)·U Vᵀ. The rest: mean_k τ_k. One
    pass, one decomposition a matrix.

    Deviations: the published figures are made with scaling_factor = 1.5; 1 is the default here, as in the code.

    Source: section 4.1, equation 5.
    """
    if not leaf.is_matrix:
        return mean(leaf.deltas)
    found = svd(total(leaf.deltas), leaf.tally)
    return found.u @ found.vh * found.s.mean()


class IsoCts(DeltaConfig):
    """Δ = σ̄ · U⊥ V⊥ᵀ of the common and the tasks' own directions; of what is no matrix, mean_k τ_k."""

    common_space_fraction: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of the directions that is common."""


def own_directions(rank: int, experts: int, fraction: float) -> int:
    """Directions of a task's own: (r − k)/T with k ← r − T·round((r − ⌊f·r⌋)/T), half to even."""
    return round((rank - math.floor(fraction * rank)) / experts)


def many_svds(shape: Shape, experts: int, cfg: IsoCts) -> float:
    return (experts + 3) * one_svd(shape, experts, cfg)


@method(paper=ISO, grain="matrix", memory=3.0, work=many_svds)
def iso_cts(leaf: Leaf, cfg: IsoCts) -> Float[Tensor, "*shape"]:
    """Isotropic merging in common and task-specific subspaces (Marczak et al., 2025).

    Per matrix with r = min(rows, columns): the k strongest directions of Σ_k τ_k are common; the common left space is
    projected out of each τ_k, whose (r − k)/T strongest directions are its own; all are put side by side, both sides
    replaced by their polar factors, and every singular value by the mean of all. So that the directions are r in all,
    k ← r − T·round((r − ⌊f·r⌋)/T), half to even. The rest: mean_k τ_k. One pass, T + 3 decompositions a matrix.

    Deviations: the published figures are made with scaling_factor = 1.5; 1 is the default here, as in the code.

    Source: section 4.2, algorithm 2.
    """
    if not leaf.is_matrix:
        return mean(leaf.deltas)
    rank, experts = min(leaf.deltas.shape[1:]), len(leaf.tasks)
    own = own_directions(rank, experts, cfg.common_space_fraction)
    common = leading(total(leaf.deltas), rank - experts * own, leaf.tally)
    parts = [common]
    for delta in leaf.deltas:
        parts.append(leading(delta - common.u @ (common.u.T @ delta), own, leaf.tally))
    u = polar(torch.cat([part.u for part in parts], 1), leaf.tally)
    vh = polar(torch.cat([part.vh for part in parts], 0), leaf.tally)
    return u @ vh * (torch.cat([part.s for part in parts]).sum() / rank)  # directions that are not there count as 0
