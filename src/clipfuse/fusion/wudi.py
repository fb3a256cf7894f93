"""WUDI-Merging: the task vector that interferes least with the inputs that every expert has learned from."""

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from clipfuse.fusion.adam import descend
from clipfuse.fusion.blocks import total
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
COLUMNS = 384
"""Columns of a Gram matrix that are made at a time."""

Moved = Sequence[tuple[Tensor, float]]
"""τ_i (rows, columns) and ‖τ_i‖ of the experts whose τ_i is not zero."""


class Wudi(DeltaConfig):
    """Δ = argmin Σ_i ‖(Δ − τ_i) τ_iᵀ‖² / ‖τ_i‖² per matrix, by Adam from Δ = Σ_i τ_i, stopped early."""

    solver: Literal["adam", "closed"] = "adam"
    """`adam`: `steps` on the way to the minimum, as the published figures; `closed`: the minimum itself."""
    steps: Annotated[int, Field(ge=1)] = 400
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


@method(paper=WUDI, grain="matrix", work=work)
def wudi(leaf: Leaf, cfg: Wudi) -> Float[Tensor, "*shape"]:
    """Data-free merging by the input subspaces that task vectors tell of (Cheng et al., 2025).

    Per matrix minimise L(Δ) = Σ_i ‖(Δ − τ_i) τ_iᵀ‖² / n_i, n_i = ‖τ_i‖², from S = Σ_i τ_i; others: mean τ. With
    A = 2 Σ_i τ_iᵀτ_i / n_i the gradient is ∇L(S) + (Δ − S) A: two fixed matrices, and one product with the
    (columns × columns) A a step. `solver=closed` takes Newton's step, Δ = S − ∇L(S) A⁺, which is
    (Σ_i τ_iτ_iᵀτ_i/n_i)(Σ_i τ_iᵀτ_i/n_i)⁺, in float64. A τ_i of zeros has no term in L. One pass; steps · rows ·
    columns² multiplications, 52 · 10¹² for eight ViT-B/32 (by factors, (Δ − S) τ_iᵀ τ_i, it is 2·T·rows instead of
    `columns` an entry: more from two experts on, as no matrix here is more than four times as wide as high).

    Precision: ∇L(S) and A are made in float64 and rounded once, and Δ − S is what is learned. Adam's first steps have
    one length however small the gradient, so rounding is amplified where |g| is not far above ε = 1e-8: ∇L(S) is made
    of S − τ_i, not as S A − B, which is noise where experts do not interfere. Against float64, 768 × 768: 7e-8 of the
    way after one step (learning Δ itself: 5e-6), and at most 1e-6 of ‖Δ‖ after 400.

    Deviations: the paper's closed form adds a ridge to every τ_iᵀτ_i; here A⁺ keeps S in directions that hold less
    than about 1e-10 of the experts' squared norm, the rounding of float32 weights among them.

    Source: section 3.3, algorithm 1; appendix A.1.4 for the closed form.
    """
    start = total(leaf.deltas)
    if not leaf.is_matrix:
        return start.div_(len(leaf.tasks))
    norms = torch.linalg.vector_norm(leaf.deltas, dim=(1, 2), dtype=torch.float64).tolist()
    moved = [(delta, norm) for delta, norm in zip(leaf.deltas, norms, strict=True) if norm]
    if not moved:
        return start
    slope = slope_at(start, moved)
    if cfg.solver == "closed":
        return start.sub_(times_inverse(slope, gram(moved, torch.float64).mul_(2)))
    slope, curvature, learned = slope.float(), gram(moved, torch.float32).mul_(2), torch.zeros_like(start)
    descend(learned, lambda out: torch.addmm(slope, learned, curvature, out=out), cfg.steps, cfg.lr)
    return start.add_(learned)


def slope_at(start: Float[Tensor, "rows columns"], moved: Moved) -> Float[Tensor, "rows columns"]:
    """∇L(start) = 2 Σ_i (start − τ_i) τ_iᵀτ_i / n_i, float64."""
    rows, columns = start.shape
    slope = torch.zeros_like(start, dtype=torch.float64)
    for delta, norm in moved:
        unit, gap = delta.double().div_(norm), start.double().sub_(delta)
        if rows < columns:
            slope.addmm_(gap @ unit.T, unit, alpha=2)
        else:
            slope.addmm_(gap, gram([(delta, norm)], torch.float64), alpha=2)
    return slope


def gram(moved: Moved, dtype: torch.dtype) -> Float[Tensor, "columns columns"]:
    """Σ_i τ_iᵀτ_i / n_i, summed in float64; what lies above the diagonal is mirrored, not computed."""
    columns = moved[0][0].shape[1]
    found = moved[0][0].new_empty(columns, columns, dtype=dtype)
    for start in range(0, columns, COLUMNS):
        stop = min(start + COLUMNS, columns)
        block = found.new_zeros(columns - start, stop - start, dtype=torch.float64)
        for delta, norm in moved:
            unit = delta[:, start:].double().div_(norm)
            block.addmm_(unit.T, unit[:, : stop - start])
        found[start:, start:stop] = block
        found[start:stop, start:] = block.T
    return found


def times_inverse(
    slope: Float[Tensor, "rows columns"], curvature: Float[Tensor, "columns columns"]
) -> Float[Tensor, "rows columns"]:
    """slope · curvature⁺ of a symmetric matrix ≥ 0, by solves with it + c · identity, each on what the last one left.

    That takes a Cholesky factor where a pseudo-inverse by eigenvectors takes forty times as long.
    """
    diagonal = curvature.diagonal()
    shift = CUTOFF * diagonal.sum()
    diagonal.add_(shift)
    factor = torch.linalg.cholesky(curvature)
    diagonal.sub_(shift)
    found, rest = torch.zeros_like(slope), slope
    for _ in range(SOLVES):
        part = torch.cholesky_solve(rest.T, factor).T
        found.add_(part)
        rest = rest.addmm(part, curvature, alpha=-1)
    return found
