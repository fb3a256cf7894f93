"""Singular value calibration: undo what directions that experts share have gained in the sum."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from clipfuse.config import Config
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import Shape, finish
from clipfuse.pool import Leaf
from clipfuse.shapes import Float
from clipfuse.stats.spectra import flops, numerical_rank, svd

SVC = Paper(
    "When Shared Knowledge Hurts: Spectral Over-Accumulation in Model Merging",
    "Li, Yayuan and Peng, Ze and Zhang, Jian and Guo, Jintao and Duan, Yue and Shi, Yinghuan",
    2026,
    "2602.05536",
)
EPS = torch.finfo(torch.float32).eps


class Svc(Config):
    """σ_r ← σ_r·T / Σ_k max(alpha, s_rk), s_rk = ⟨u_rᵀΔ, u_rᵀτ_k⟩ / ‖u_rᵀτ_k‖², per matrix."""

    alpha: Annotated[float, Field(ge=0, examples=[0.1])]
    """Least of a coefficient s; 0.1 on averages, task_arithmetic, ties_merging, iso_c; 0.2 on iso_cts; 1 on
    tsv_merging, wudi."""


def work(shape: Shape, experts: int, cfg: Svc) -> float:
    """A decomposition, a product for each expert and one for the result."""
    return flops(shape) + 2.0 * (experts + 1) * math.prod(shape) * min(shape) if len(shape) == 2 else 0.0


@finish(paper=SVC, grain="matrix", memory=(1.0, 11.0), work=work)
def svc(leaf: Leaf, delta: Float[Tensor, "*shape"], cfg: Svc) -> Float[Tensor, "*shape"]:
    """Calibrate the singular values of the merged task vector (Li et al., 2026).

    With U diag(σ) Vᵀ the SVD of a matrix Δ: a_r = u_rᵀΔ and a_rk = u_rᵀτ_k are the responses of direction r, and
    s_rk = ⟨a_r, a_rk⟩ / ‖a_rk‖² says how much of task k's own is left (0 if it has none);
    σ_r ← σ_r·T / Σ_k max(alpha, s_rk). A direction whose divisor is 0 is left alone, and so is what is no matrix.
    τ_k is as it was before edits, Δ has its λ. One pass, an SVD and T products a matrix.

    Deviations: a response below rounding counts as none, and a σ_r below rounding is left alone: in exact arithmetic
    both are 0/0. The position embedding is a matrix here; the authors' code leaves it out.

    Source: algorithm 1, equations 4 and 8.
    """
    if not leaf.is_matrix:
        return delta
    found = svd(delta, leaf.tally)
    u, s, vh = found
    merged, divisor = s[:, None] * vh, s.new_zeros(len(s), dtype=torch.float64)
    for tau in leaf.deltas:
        own = u.T @ tau
        size = own.square().sum(1)
        left = (merged * own).sum(1) / size
        none = size <= (8 * EPS) ** 2 * tau.square().sum()
        divisor += left.masked_fill_(none, 0).clamp_min_(cfg.alpha)
    alone = divisor == 0
    alone[numerical_rank(found) :] = True
    gain = (len(leaf.tasks) / divisor).masked_fill_(alone, 1).sub_(1).float()
    return torch.addmm(delta, u * gain, merged)
