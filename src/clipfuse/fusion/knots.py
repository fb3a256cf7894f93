"""KnOTS: rotate the task vectors of each layer onto a basis that they share, merge them there, rotate back."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.fusion.blocks import total
from clipfuse.fusion.election import hold_election, merge_elected
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import DeltaConfig, Shape, method
from clipfuse.pool import Leaf, PoolView, pool_of_deltas
from clipfuse.shapes import Float

KNOTS = Paper(
    "Model merging with SVD to tie the Knots",
    "Stoica, George and Ramesh, Pratik and Ecsedi, Boglarka and Choshen, Leshem and Hoffman, Judy",
    2025,
    "2410.19735",
    "ICLR",
)

SUPPORT = 1e-5
"""Singular values up to this are dropped, as in the authors' code."""
PANEL = 256
"""Rows of a Gram matrix that are multiplied at a time, up to its diagonal."""


class Knots(DeltaConfig):
    """Δ = U · rule(ΣV_1ᵀ, …, ΣV_Tᵀ) per matrix, [τ_1 … τ_T] = U Σ [V_1ᵀ … V_Tᵀ]."""

    scaling_factor: float = 0.3
    """λ in θ0 + λΔ, dimensionless."""
    rule: Literal["ties_merging", "task_arithmetic"] = "ties_merging"
    """How the rotated task vectors are merged."""
    keep: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of a rotated task vector's entries that ties_merging keeps, counted over the whole model."""
    merge: Literal["sum", "mean"] = "sum"
    """How ties_merging combines agreeing entries: their `sum`, or disjoint `mean` as the authors do."""


def flops(shape: Shape, experts: int, cfg: Knots) -> float:
    if len(shape) != 2:
        return 0.0
    rows, columns = shape
    beside = experts * columns
    side = min(rows, beside)
    turned = 2 * columns if cfg.rule == "task_arithmetic" else beside + columns
    return side**2 * max(rows, beside) + 10.0 * side**3 + 2.0 * rows * side * turned


@method(paper=KNOTS, grain="matrix", memory=(7.0, 0.0), work=flops)
def knots(view: PoolView, cfg: Knots, run: Any) -> Iterator[tuple[str, Tensor]]:
    """Merging in a basis that the experts share (Stoica et al., 2025).

    Per 2-D weight, [τ_1 … τ_T] side by side = U Σ [V_1ᵀ … V_Tᵀ] without singular values ≤ 1e-5. The ΣV_kᵀ = Uᵀτ_k
    of all matrices, together with the task vectors of all other parameters as they are, are merged by the inner rule:
    ties_merging trims, and finds the majority sign, over the whole model, where dropped directions do not count.
    Δ = U · merged. Under task_arithmetic that is Σ_k τ_k but for the dropped directions.

    One pass over the pool and, for ties_merging, three over the rotated task vectors, which lie in a temporary file:
    4 bytes for each element of all task vectors and at most as much for the U (3.4 GB for eight ViT-B/32). U comes
    from the float64 Gram matrix of the shorter side of [τ_1 … τ_T]; one of 3072 rows takes 0.4 GB in work. Where
    singular values coincide, U is not unique, nor is what ties_merging makes of it.

    Deviations: the paper's figure merges the V_k and multiplies by UΣ; the authors' code, and this, the ΣV_k. They
    merge LoRA updates, which touch matrices only; given more, their code takes a bias as a further column of its
    weight. Theirs is the disjoint mean with λ = 0.6 on ViT-B/32 and 0.5 on ViT-L/14, found on validation data
    (`merge=mean scaling_factor=0.6`); the defaults here are those of `ties_merging`, so that the two differ in the
    rotation alone. A singular value that float64 cannot tell from zero (1e-6 of the largest) is dropped as well.

    Source: figure 1; the cut, and trimming over all layers together, as in the authors' code.
    """
    if cfg.rule == "task_arithmetic":
        yield from run.map(supported_sum, "matrix")
        return
    experts = len(view.tasks)
    shapes = {name: spec.shape for name, spec in view.specs.items()}
    bases = run.scratch(
        {n: TensorSpec((s[0], min(s[0], experts * s[1])), torch.float32) for n, s in shapes.items() if len(s) == 2}
    )
    rotated = run.scratch({name: TensorSpec((experts, *shape), torch.float32) for name, shape in shapes.items()})

    def rotate(leaf: Leaf) -> tuple[str, int]:
        if not leaf.is_matrix:
            rotated[leaf.name].copy_(leaf.deltas)
            return leaf.name, len(leaf.deltas[0])
        basis = left_directions(leaf.deltas)
        rank = basis.shape[1]
        bases[leaf.name][:, :rank] = basis
        wide, turned = (basis.new_empty(rows, leaf.deltas.shape[2]) for rows in (len(basis), rank))
        for delta, row in zip(leaf.deltas, rotated[leaf.name], strict=True):
            row[:rank] = torch.mm(basis.T, wide.copy_(delta), out=turned)
        return leaf.name, rank

    kept = dict(run.map(rotate, "matrix"))
    run.tally["knots.directions"] += sum(kept[name] for name in bases)
    run.tally["knots.of"] += sum(basis.shape[1] for basis in bases.values())
    vectors = {t: {n: rotated[n][k, :rank] for n, rank in kept.items()} for k, t in enumerate(view.tasks)}
    turned = replace(view, pool=pool_of_deltas(vectors), edits=(), grain="element", progress=None)
    election = hold_election(turned, cfg.keep)

    def merge_and_turn_back(leaf: Leaf) -> tuple[str, Tensor]:
        merged = merge_elected(leaf.deltas, election, cfg.merge)
        if leaf.name in bases:
            merged = bases[leaf.name][:, : kept[leaf.name]].to(merged) @ merged
        return leaf.name, merged

    yield from turned.map(merge_and_turn_back, "matrix")


def supported_sum(leaf: Leaf) -> tuple[str, Tensor]:
    """Σ_k τ_k without the dropped directions."""
    summed = total(leaf.deltas)
    if leaf.is_matrix:
        basis = left_directions(leaf.deltas)
        if basis.shape[1] < len(basis):
            summed = (basis @ (basis.T @ summed.double())).float()
    return leaf.name, summed


def left_directions(deltas: Float[Tensor, "task rows columns"]) -> Float[Tensor, "rows rank"]:
    """U of [τ_1 … τ_T] = U Σ Vᵀ, float64, for the singular values that are kept."""
    tasks, rows, columns = deltas.shape
    if not deltas.any():
        return deltas.new_empty(rows, 0, dtype=torch.float64)
    if rows > tasks * columns:
        beside = torch.cat(list(deltas), dim=1).double()
        values, right = supported(beside.T @ beside)
        return (beside @ right).div_(values.sqrt())
    return supported(gram_of_rows(deltas))[1]


def gram_of_rows(deltas: Float[Tensor, "task rows columns"]) -> Float[Tensor, "rows rows"]:
    """Σ_k τ_k τ_kᵀ, float64; its lower triangle and some of the rest."""
    _, rows, columns = deltas.shape
    gram = deltas.new_zeros(rows, rows, dtype=torch.float64)
    wide = deltas.new_empty(rows, columns, dtype=torch.float64)
    for delta in deltas:
        wide.copy_(delta)
        for start in range(0, rows, PANEL):
            stop = start + PANEL
            gram[start:stop, :stop].addmm_(wide[start:stop], wide[:stop].T)
    return gram


def supported(gram: Float[Tensor, "side side"]) -> tuple[Float[Tensor, "rank"], Float[Tensor, "side rank"]]:
    """Eigenvalues of a Gram matrix that belong to kept singular values, ascending, and their eigenvectors.

    Reads the lower triangle only.
    """
    values, vectors = torch.linalg.eigh(gram)
    noise = float(values[-1]) * len(gram) * torch.finfo(gram.dtype).eps
    first = int((values <= max(SUPPORT**2, noise)).sum())
    return values[first:], vectors[:, first:]
