"""DOP: dual projections between what is merged so far and the next expert."""

from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from clipfuse.fusion.adam import descend
from clipfuse.fusion.blocks import total
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import ContinualConfig, Shape, method
from clipfuse.pool import Leaf
from clipfuse.shapes import Float
from clipfuse.stats.spectra import Tally, svd

DOP = Paper(
    "Continual Model Merging without Data: Dual Projections for Balancing Stability and Plasticity",
    "Yang, Enneng and Tang, Anke and Shen, Li and Guo, Guibing and Wang, Xingwei and Cao, Xiaochun and Zhang, Jie",
    2025,
    "",
    "NeurIPS",
)

NEARLY_ALL = 0.999
"""Weight of the shorter gradient where no point between the two is shorter still."""


class Dop(ContinualConfig):
    """S_t = argmin_Δ Σ_i w_i (‖S_iU_iᵀ(Δ−τ_i)‖² + ‖(Δ−τ_i)V_iS_i‖²), i = S_{t−1}, τ_t; U_iS_iV_iᵀ = SVD(τ_i), cut."""

    steps: Annotated[int, Field(ge=0, examples=[5])] = 200
    """Steps of Adam for each Linear weight and expert."""
    lr: Annotated[float, Field(gt=0)] = 1e-4
    """Step size of Adam, in units of weights."""
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Weight of what is merged so far at the first step; the next expert's is 1 − alpha."""
    ema: Annotated[float, Field(ge=0, le=1)] = 0.999
    """Share of the weights that stays at a step, the rest is the gradients'; 1 fixes them, 0 forgets the past."""
    energy: Annotated[float, Field(ge=0, le=1)] = 0.99999
    """Triplets are kept as long as the cumulative share of their singular values is below it."""
    space: Literal["uv", "u", "v"] = "uv"
    """Directions that count: of the outputs (u), of the inputs (v), or both."""


class Pull(NamedTuple):
    """What draws Δ to a member: with D = Δ − τ, half the gradient of its loss, A D + D B, A = US²Uᵀ, B = VS²Vᵀ.

    Each of the two is that square matrix, or its root US or VS where that has less than half the columns.
    """

    tau: Float[Tensor, "rows columns"]
    left: Float[Tensor, "rows _"] | None
    right: Float[Tensor, "columns _"] | None

    @classmethod
    def of(cls, tau: Float[Tensor, "rows columns"], cfg: Dop, tally: Tally) -> "Pull":
        u, s, vh = svd(tau, tally)
        share = s.double().cumsum(0)
        kept = int((share < cfg.energy * share[-1]).sum())
        left = squared(u[:, :kept] * s[:kept]) if "u" in cfg.space else None
        right = squared(vh[:kept].mT * s[:kept]) if "v" in cfg.space else None
        return cls(tau, left, right)

    def loss(
        self,
        delta: Float[Tensor, "rows columns"],
        difference: Float[Tensor, "rows columns"],
        gradient: Float[Tensor, "rows columns"],
    ) -> float:
        """The loss at Δ; half its gradient goes into `gradient`, D into `difference`."""
        torch.sub(delta, self.tau, out=difference)
        gradient.zero_()
        if self.left is not None:
            inside = difference if is_square(self.left) else self.left.mT @ difference
            gradient.addmm_(self.left, inside)
        if self.right is not None:
            inside = (difference, self.right) if is_square(self.right) else (difference @ self.right, self.right.mT)
            gradient.addmm_(*inside)
        return dot(difference, gradient)


def squared(root: Float[Tensor, "side rank"]) -> Tensor:
    """root rootᵀ, or the root itself where multiplying by it twice is cheaper."""
    side, rank = root.shape
    return root @ root.mT if side <= 2 * rank else root.contiguous()


def is_square(matrix: Tensor) -> bool:
    return matrix.shape[0] == matrix.shape[1]


def dot(a: Tensor, b: Tensor) -> float:
    return float(torch.dot(a.view(-1), b.view(-1)))


def balance(first: float, both: float, second: float) -> float:
    """The c ∈ [0.001, 0.999] with the shortest c·g_1 + (1−c)·g_2, of ⟨g_1, g_1⟩, ⟨g_1, g_2⟩ and ⟨g_2, g_2⟩."""
    if both >= first:
        return NEARLY_ALL
    if both >= second:
        return 1 - NEARLY_ALL
    return (second - both) / (first + second - 2 * both)


def work(shape: Shape, experts: int, cfg: Dop) -> float:
    """Two products a step and member, for each expert but the first."""
    if len(shape) != 2:
        return 0.0
    rows, columns = shape
    sides = sum(min(side, 2 * min(shape)) for side in shape)
    return 4.0 * cfg.steps * rows * columns * sides * (experts - 1)


@method(paper=DOP, grain="matrix", continual=True, memory=(4.0, 10.0), work=work)
def dop(leaf: Leaf, cfg: Dop) -> Float[Tensor, "*shape"]:
    """Dual orthogonal projections of each pair of merged so far and next (Yang et al., 2025).

    S_1 = τ_1. Each Linear weight of S_t begins as the mean of S_{t−1} and τ_t and is drawn by Adam to both, in the
    directions that matter to each: Σ_i w_i(‖S_iU_iᵀ(Δ−τ_i)‖² + ‖(Δ−τ_i)V_iS_i‖²), U_iS_iV_iᵀ the leading triplets of
    the two, as many as have a cumulative share of Σ σ below `energy`. The weights w are a moving average, from
    (alpha, 1−alpha), of those with which the two gradients, each divided by its loss, add up to the shortest vector.
    All else is the mean of the pair. Gradients are 2(A_iD + DB_i) with two fixed matrices a member.

    One pass over each expert; 200 steps of four products a Linear weight: about half an hour of one core for each
    ViT-B/32 that arrives.

    Deviations: optimises the task vector, not the weights, which spares float32 the digits of θ0. The class embedding
    is averaged as everything else; the code of the figures leaves it as it is in the base. Their order is drawn by
    Python's generator (`shuffle=true` draws another). A loss of 0 has a gradient of 0 (0/0 there). FusionBench's
    `mgda=false` is `ema=1`, its `ema=false` is `ema=0`.

    Source: section 4.2, equations 2 and 3; multi-gradient descent as in Sener and Koltun (2018).
    """
    pair = leaf.deltas
    delta = total(pair).div_(2)
    if not leaf.is_linear:
        return delta
    pulls = [Pull.of(tau, cfg, leaf.tally) for tau in pair]
    weights = [cfg.alpha, 1 - cfg.alpha]
    difference, other = torch.empty_like(delta), torch.empty_like(delta)

    def gradient(out: Tensor) -> None:
        losses = [pull.loss(delta, difference, into) for pull, into in zip(pulls, (out, other), strict=True)]
        if cfg.ema < 1:
            a, b = (2 / loss if loss > 0 else 0.0 for loss in losses)
            own = balance(a * a * dot(out, out), a * b * dot(out, other), b * b * dot(other, other))
            weights[:] = [cfg.ema * w + (1 - cfg.ema) * c for w, c in zip(weights, (own, 1 - own), strict=True)]
        out.mul_(2 * weights[0]).add_(other, alpha=2 * weights[1])

    descend(delta, gradient, cfg.steps, cfg.lr)
    return delta
