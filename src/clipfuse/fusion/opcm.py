"""OPCM: continual merging by orthogonal projection."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import ContinualConfig, Norms, Shape, method
from clipfuse.pool import Leaf
from clipfuse.shapes import Float
from clipfuse.stats.spectra import flops, svd

OPCM = Paper(
    "Merging Models on the Fly Without Retraining: A Sequential Approach to Scalable Continual Model Merging",
    "Tang, Anke and Yang, Enneng and Shen, Li and Luo, Yong and Hu, Han and Zhang, Lefei and Du, Bo and Tao, Dacheng",
    2025,
    "2501.09522",
    "NeurIPS",
)


class Opcm(ContinualConfig):
    """S_t = S_{t−1} + τ_t − U_a(U_aᵀτ_tV_a)V_aᵀ − Σ_{k>a} u_k(u_kᵀτ_tv_k)v_kᵀ; Δ_t = S_t · mean_{k≤t}‖τ_k‖ / ‖S_t‖."""

    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the sum of singular values up to which directions of what is merged are kept clear as a whole."""


def to_mean_norm(norms: Norms) -> float:
    """The factor that gives Δ the mean norm of the task vectors; 0 where nothing is merged."""
    return sum(norms.experts) / len(norms.experts) / norms.merged if norms.merged else 0.0


def work(shape: Shape, experts: int, cfg: Opcm) -> float:
    """A singular value decomposition and four products for each expert but the first."""
    return (experts - 1) * (flops(shape) + 8.0 * math.prod(shape) * min(shape)) if len(shape) == 2 else 0.0


def true_rank(s: Float[Tensor, "rank"], length: int) -> int:
    """How many singular values are the matrix's own: rounding makes many small ones, chance makes one or two."""
    rank = int((s > s[0] * length * torch.finfo(s.dtype).eps).sum())
    return rank if len(s) - rank > max(1, len(s) // 256) else int((s > 0).sum())


@method(paper=OPCM, grain="matrix", continual=True, rescale=to_mean_norm, memory=(4.0, 8.0), work=work)
def opcm(leaf: Leaf, cfg: Opcm) -> Float[Tensor, "*shape"]:
    """Orthogonal-projection continual merging (Tang et al., 2025).

    S_1 = τ_1. When expert t arrives, U Σ Vᵀ is the decomposition of each Linear weight of S_{t−1} and a the number of
    its leading singular values whose cumulative share of their sum is ≤ alpha. What τ_t has in the space of the first
    a directions, and on the diagonal of the others, is left out: S_t = S_{t−1} + τ_t − U_a(U_aᵀτ_tV_a)V_aᵀ −
    Σ_{k>a} u_k(u_kᵀτ_tv_k)v_kᵀ. All else is summed: S_t = S_{t−1} + τ_t. The result is S_t with the mean norm of the
    task vectors, over the whole model: the paper's Δ_t = (λ_{t−1}Δ_{t−1} + …)/λ_t with S_t = λ_tΔ_t.

    One pass over each expert, a decomposition a Linear weight; memory for one model besides the result, whatever the
    number of experts.

    Deviations: the figures are made in an order drawn by Python's generator (`shuffle=true` draws another); their
    code leaves the class embedding as it is in the first expert, here it is summed as everything that is no Linear
    weight. Directions of S_{t−1} whose singular value is 0 (in float32) are not the model's and leave τ_t alone.
    alpha = 1 keeps all directions clear; in that code it keeps none as a whole.

    Source: algorithm 1.
    """
    merged, arriving = leaf.deltas
    if not leaf.is_linear:
        return merged + arriving
    u, s, vh = svd(merged, leaf.tally)
    rank = true_rank(s, max(merged.shape))
    u, vh = u[:, :rank], vh[:rank]
    inside = u.mT @ arriving @ vh.mT
    share = s[:rank].double().cumsum(0)
    clear = int((share <= cfg.alpha * share[-1:]).sum())
    taken = inside.diagonal().diag()
    taken[:clear, :clear] = inside[:clear, :clear]
    return (u @ taken @ vh).neg_().add_(arriving).add_(merged)
