"""WUDI-Merging: the task vector that interferes least with the inputs that every expert has learned from."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.linalg import vector_norm

from clipfuse.fusion.adam import descend
from clipfuse.fusion.blocks import mean, total
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import DeltaConfig, Shape, method
from clipfuse.pool import Leaf
from clipfuse.shapes import Float

WUDI = Paper(
    "Whoever Started the Interference Should End It: Guiding Data-Free Model Merging via Task Vectors",
    "Cheng, Runxi and Xiong, Feng and Wei, Yongxian and Zhu, Wanyun and Yuan, Chun",
    2025,
    "2503.08099",
    "ICML",
)

CUTOFF, SOLVES = 1e-10, 3
"""In A⁺ an eigenvalue λ of A counts by 1 − (c/(λ + c))^SOLVES, c = CUTOFF · trace A."""
BLOCK = 192
"""Columns of a Gram matrix, or rows of S − τ_i, that are made at a time."""

Moved = Sequence[tuple[Tensor, float]]
"""τ_i (rows, columns) and ‖τ_i‖ of the experts whose τ_i is not zero."""


class Wudi(DeltaConfig):
    """Δ = argmin Σ_i ‖(Δ − τ_i) τ_iᵀ‖² / ‖τ_i‖² per matrix, by Adam from Δ = Σ_i τ_i, stopped early."""

    solver: Literal["adam", "closed"] = "adam"
    """`adam`: `steps` on the way to the minimum, as the published figures; `closed`: the minimum itself."""
    steps: Annotated[int, Field(ge=1, examples=[10])] = 400
    """Steps of Adam. They stop early on purpose: more of them give another result, not a more exact one."""
    lr: Annotated[float, Field(gt=0)] = 1e-5
    """Adam's step size, in units of the weights."""


def work(shape: Shape, experts: int, cfg: Wudi) -> float:
    """Operations in float64, of which a CPU does half as many a second, are counted twice."""
    if len(shape) != 2:
        return 0.0
    rows, columns = shape
    grams = experts * rows * columns * (columns / 2 + 1.5 * min(shape))
    solves = columns**3 / 3 + 2 * SOLVES * rows * columns**2
    return 2 * (2 * grams + (2 * solves if cfg.solver == "closed" else cfg.steps * rows * columns**2))


@method(paper=WUDI, grain="matrix", memory=(1.5, 17.0), work=work)
def wudi(leaf: Leaf, cfg: Wudi) -> Float[Tensor, "*shape"]:
    """Data-free merging by the input subspaces that task vectors tell of (Cheng et al., 2025).

    Per matrix minimise L(Δ) = Σ_i ‖(Δ − τ_i) τ_iᵀ‖² / n_i, n_i = ‖τ_i‖², from S = Σ_i τ_i; others: mean τ. With
    A = 2 Σ_i τ_iᵀτ_i / n_i the gradient is ∇L(S) + (Δ − S) A: two fixed matrices, and one product with the
    (columns × columns) A a step. `solver=closed` takes Newton's step, Δ = S − ∇L(S) A⁺, which is
    (Σ_i τ_iτ_iᵀτ_i/n_i)(Σ_i τ_iᵀτ_i/n_i)⁺, in float64. A τ_i of zeros has no term in L. One pass; steps · rows ·
    columns² multiplications, 52 · 10¹² for eight ViT-B/32 (by factors, (Δ − S) τ_iᵀ τ_i, it is 2·T·rows instead of
    `columns` an entry: more from two experts on, as no matrix here is more than four times as wide as high).

    Precision: Δ − S is what is learned, so that rounding grows with the way and not with Δ. Adam's first steps have
    one length however small the gradient, and below ε = 1e-8 they are too long for the curvature: both amplify the
    rounding of gradients near zero. So ∇L(S) is made in float64, at the unrounded S, and of S − τ_i, which is exactly
    zero for one expert; A may be float32, as the products are. Against Adam in float64 on 768 × 768: off by 7e-8 of
    the way after one step (5e-6 if Δ itself is learned), by less than 1e-6 of ‖Δ‖ after 400; where experts do not
    interfere at all, and nothing but rounding moves Δ, by 1e-4.

    Deviations: the paper's closed form adds a ridge to every τ_iᵀτ_i; here A⁺ keeps S in directions that hold less
    than about 1e-10 of the experts' squared norm, the rounding of float32 weights among them.

    Source: section 3.3, algorithm 1; appendix A.1.4 for the closed form.
    """
    if not leaf.is_matrix:
        return mean(leaf.deltas)
    moved = [(delta, norm) for delta in leaf.deltas if (norm := float(vector_norm(delta, dtype=torch.float64)))]
    if not moved:
        return torch.zeros_like(leaf.deltas[0])
    slope, curvature = quadratic(moved, torch.float64 if cfg.solver == "closed" else torch.float32)
    if cfg.solver == "closed":
        step = times_inverse(slope, curvature)
        return total(leaf.deltas).sub_(step)
    slope, learned = slope.float(), torch.zeros_like(leaf.deltas[0])
    descend(learned, lambda out: torch.addmm(slope, learned, curvature, out=out), cfg.steps, cfg.lr)
    return learned.add_(total(leaf.deltas))


def quadratic(
    moved: Moved, dtype: torch.dtype
) -> tuple[Float[Tensor, "rows columns"], Float[Tensor, "columns columns"]]:
    """∇L(S) = 2 Σ_i (S − τ_i) τ_iᵀτ_i / n_i in float64 and A in `dtype`, products in the cheaper order."""
    rows, columns = moved[0][0].shape
    if rows < columns:
        return slope_of_wide(moved).mul_(2), gram(moved, dtype).mul_(2)
    exact = exact_sum(moved)
    slope, curvature = torch.zeros_like(exact), exact.new_zeros(columns, columns)
    for delta, norm in moved:
        own = gram([(delta, norm)], torch.float64)
        slope.addmm_(exact - delta, own)
        curvature.add_(own)
    return slope.mul_(2), curvature.mul_(2).to(dtype)


def slope_of_wide(moved: Moved) -> Float[Tensor, "rows columns"]:
    """Σ_i (S − τ_i) τ_iᵀ · τ_i / n_i, float64."""
    exact = exact_sum(moved)
    slope, unit, products = torch.zeros_like(exact), torch.empty_like(exact), exact.new_empty(len(exact), len(exact))
    parts = [slice(start, start + BLOCK) for start in range(0, len(exact), BLOCK)]
    for delta, norm in moved:
        unit.copy_(delta).div_(norm)
        for part in parts:
            torch.mm(exact[part] - delta[part], unit.T, out=products[part])
        slope.addmm_(products, unit)
    return slope


def exact_sum(moved: Moved) -> Float[Tensor, "rows columns"]:
    """S, float64: one that is rounded to float32 has a slope of its rounding."""
    found = moved[0][0].double()
    for delta, _ in moved[1:]:
        found.add_(delta)
    return found


def gram(moved: Moved, dtype: torch.dtype) -> Float[Tensor, "columns columns"]:
    """Σ_i τ_iᵀτ_i / n_i, computed in `dtype`; what lies above the diagonal is mirrored."""
    unit = torch.empty_like(moved[0][0], dtype=dtype)
    columns = unit.shape[1]
    found, starts = unit.new_zeros(columns, columns), range(0, columns, BLOCK)
    for delta, norm in moved:
        unit.copy_(delta).div_(norm)
        for start in starts:
            found[start:, start : start + BLOCK].addmm_(unit[:, start:].T, unit[:, start : start + BLOCK])
    for start in starts:
        found[start : start + BLOCK, start:] = found[start:, start : start + BLOCK].T.clone()
    return found


def times_inverse(
    slope: Float[Tensor, "rows columns"], curvature: Float[Tensor, "columns columns"]
) -> Float[Tensor, "rows columns"]:
    """slope · curvature⁺ of a symmetric matrix ≥ 0, as Σ_k cᵏ · slope · (curvature + c·1)⁻ᵏ⁻¹; both are overwritten.

    That takes one Cholesky factor; eigenvectors would take forty times as long, and twice the memory.
    """
    diagonal = curvature.diagonal()
    shift = CUTOFF * float(diagonal.sum())
    diagonal.add_(shift)
    factor = curvature.mT  # column after column, as LAPACK has it: nothing is copied
    torch.linalg.cholesky(factor, out=factor)
    found = torch.zeros_like(slope)
    for _ in range(SOLVES):
        torch.linalg.solve_triangular(factor.mT, slope, upper=True, left=False, out=slope)
        torch.linalg.solve_triangular(factor, slope, upper=False, left=False, out=slope)
        found.add_(slope)
        slope.mul_(shift)
    return found
