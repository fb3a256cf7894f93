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
COLUMNS = 192
"""Columns of a Gram matrix that are made at a time."""

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


@method(paper=WUDI, grain="matrix", work=work)
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
    start = total(leaf.deltas)
    if not leaf.is_matrix:
        return start.div_(len(leaf.tasks))
    norms = torch.linalg.vector_norm(leaf.deltas, dim=(1, 2), dtype=torch.float64).tolist()
    moved = [(delta, norm) for delta, norm in zip(leaf.deltas, norms, strict=True) if norm]
    if not moved:
        return start
    slope, curvature = quadratic(moved, torch.float64 if cfg.solver == "closed" else torch.float32)
    if cfg.solver == "closed":
        return start.sub_(times_inverse(slope, curvature))
    slope, learned = slope.float(), torch.zeros_like(start)
    descend(learned, lambda out: torch.addmm(slope, learned, curvature, out=out), cfg.steps, cfg.lr)
    return start.add_(learned)


def quadratic(
    moved: Moved, dtype: torch.dtype
) -> tuple[Float[Tensor, "rows columns"], Float[Tensor, "columns columns"]]:
    """∇L(S) = 2 Σ_i (S − τ_i) τ_iᵀτ_i / n_i in float64, its products in the cheaper order, and A in `dtype`."""
    rows, columns = moved[0][0].shape
    exact = torch.zeros_like(moved[0][0], dtype=torch.float64)  # S as float32 would have a slope of its rounding
    for delta, _ in moved:
        exact.add_(delta)
    slope = torch.zeros_like(exact)
    if rows < columns:
        for delta, norm in moved:
            unit = delta.double().div_(norm)
            slope.addmm_((exact - delta) @ unit.T, unit)
        return slope.mul_(2), gram(moved, dtype).mul_(2)
    curvature = slope.new_zeros(columns, columns)
    for delta, norm in moved:
        own = gram([(delta, norm)], torch.float64)
        slope.addmm_(exact - delta, own)
        curvature.add_(own)
    return slope.mul_(2), curvature.mul_(2).to(dtype)


def gram(moved: Moved, dtype: torch.dtype) -> Float[Tensor, "columns columns"]:
    """Σ_i τ_iᵀτ_i / n_i, computed in `dtype`; what lies above the diagonal is mirrored."""
    columns = moved[0][0].shape[1]
    found = moved[0][0].new_empty(columns, columns, dtype=dtype)
    for start in range(0, columns, COLUMNS):
        stop = min(start + COLUMNS, columns)
        block = found.new_zeros(columns - start, stop - start)
        for delta, norm in moved:
            unit = delta[:, start:].to(dtype) / norm
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
