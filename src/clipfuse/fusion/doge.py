"""DOGE task arithmetic: a shift of all task vectors, learned against their conflicts, off what they share."""

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from clipfuse.fusion.adam import descend
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import DeltaConfig, Shape, method
from clipfuse.pool import Leaf, PoolView
from clipfuse.shapes import Float
from clipfuse.stats.quantiles import kth_magnitudes
from clipfuse.stats.spectra import Tally, leading

DOGE = Paper(
    "Modeling Multi-Task Model Merging as Adaptive Projective Gradient Descent",
    "Wei, Yongxian and Tang, Anke and Shen, Li and Hu, Zixuan and Yuan, Chun and Cao, Xiaochun",
    2025,
    "2501.01230",
    "ICML",
)

PART = 32_768
"""Elements of a task vector that a gradient works on at a time: with those of eight experts, a second-level cache."""


class DogeTa(DeltaConfig):
    """Δ = Σ_i λ_i (τ_i + δ) ⊙ [|τ_i| among its largest], λ_i = eta/‖τ_i‖ per matrix, δ learned."""

    eta: Annotated[float, Field(gt=0)] = 0.07
    """Norm of every scaled task vector λ_i τ_i of a matrix, in units of the weights."""
    keep: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Share of an expert's entries that is kept, counted over all matrices that are merged."""
    subspace: Annotated[int, Field(ge=1)] = 6
    """The shared subspace, which δ leaves alone, has r/subspace dimensions, r = min(rows, columns)."""
    steps: Annotated[int, Field(ge=1, examples=[10])] = 400
    """Steps of Adam for every matrix."""
    lr: Annotated[float, Field(gt=0)] = 1e-4
    """Adam's step size, in units of the weights."""


def is_merged(name: str, shape: Shape) -> bool:
    """Whether it is a 2-D weight of the encoder's layers; all else stays as in the base."""
    return name.startswith("encoder.layers.") and len(shape) == 2


def find_floors(view: PoolView, cfg: DogeTa) -> Float[Tensor, "task"]:
    """The magnitude from which an expert's entries stay."""
    names = frozenset(name for name, spec in view.specs.items() if is_merged(name, spec.shape))
    return kth_magnitudes(replace(view, only=names), cfg.keep)


def work(shape: Shape, experts: int, cfg: DogeTa) -> float:
    """The projections, the inner products with every expert, and the decompositions."""
    if len(shape) != 2:
        return 0.0
    rows, columns = shape
    side = min(shape)
    steps = 4.0 * cfg.steps * rows * columns * (side // cfg.subspace + experts)
    return steps + (experts + 1) * side**2 * (2 * max(shape) + 9 * side)


@method(paper=DOGE, grain="matrix", prepare=find_floors, passes=1, memory=(1.0, 12.0), work=work)
def doge_ta(leaf: Leaf, cfg: DogeTa, floors: Float[Tensor, "task"]) -> Float[Tensor, "*shape"]:
    """Task arithmetic by adaptive projective gradient descent (Wei et al., 2025).

    Only 2-D weights of the encoder's layers are merged. Per matrix, λ_i = eta/‖τ_i‖; from δ = 0, Adam on
    Σ_j ‖rowsum(τ_j ⊙ (τ_j − Σ_i λ_i τ_i − Σ_i λ_i δ))‖², its gradient g replaced by g − U Uᵀ g, where U are the
    r/subspace leading left singular vectors of the r/T leading ones of every τ_i side by side; then
    Δ = Σ_i λ_i (τ_i + δ) ⊙ [|τ_i| ≥ floor_i], where floor_i lets through the largest `keep` of all entries of the
    merged matrices, counted as in ties_merging. Two passes: one for the floors (after a sample), one to merge; a step
    takes 2·(r/subspace + T) multiplications an entry, 15 · 10¹² in all for eight ViT-B/32.

    Deviations: directions without a singular value (of a τ_i of low rank or of zeros) are not shared ones, where the
    published code takes what its SVD fills up with; keep = 1 keeps everything, where that fails.

    Source: section 3, and the code of the figures, FusionBench's DOGE_TA.
    """
    if not (leaf.is_matrix and is_merged(leaf.name, leaf.stored_experts[0].shape)):
        return torch.zeros_like(leaf.base)
    deltas = leaf.deltas
    norms = [float(torch.linalg.vector_norm(delta, dtype=torch.float64)) for delta in deltas]
    factors = [cfg.eta / norm if norm else 0.0 for norm in norms]
    shift = learn_shift(deltas, factors, shared_directions(deltas, cfg.subspace, leaf.tally), cfg)
    merged = torch.zeros_like(shift)
    for delta, factor, floor in zip(deltas, factors, floors.tolist(), strict=True):
        merged.add_(torch.where(delta.abs() >= floor, delta + shift, 0), alpha=factor)
    return merged


def shared_directions(
    deltas: Float[Tensor, "task rows columns"], subspace: int, tally: Tally | None = None
) -> Float[Tensor, "rows shared"]:
    """U, orthonormal columns, found in float64: values beside the cuts are close, and each rounds U by their gap."""
    full = min(deltas.shape[1:])
    own = [left_directions(delta.double(), full // len(deltas), tally) for delta in deltas]
    return left_directions(torch.cat(own, 1), full // subspace, tally).float()


def left_directions(
    matrix: Float[Tensor, "rows columns"], rank: int, tally: Tally | None
) -> Float[Tensor, "rows rank"]:
    """Left singular vectors of the `rank` largest singular values, but of those that are rounding of float32."""
    rank = min(rank, *matrix.shape)
    if not rank:
        return matrix[:, :0]
    u, s, _ = leading(matrix, rank, tally)
    return u[:, s > max(matrix.shape) * torch.finfo(torch.float32).eps * s[:1]]


def learn_shift(
    deltas: Float[Tensor, "task rows columns"],
    factors: list[float],
    shared: Float[Tensor, "rows shared"],
    cfg: DogeTa,
) -> Float[Tensor, "rows columns"]:
    """δ after `steps` of Adam.

    With e_j = rowsum(τ_j ⊙ (τ_j − Σ_i λ_i τ_i)), once and in float64, the gradient is
    −2 Σ_i λ_i · Σ_j diag(e_j − Σ_i λ_i · rowsum(τ_j ⊙ δ)) τ_j: two passes over the τ_j, block by block in cache.
    """
    _, rows, columns = deltas.shape
    shift, factor = torch.zeros_like(deltas[0]), sum(factors)
    size = max(1, PART // columns) if deltas.device.type == "cpu" else rows
    blocks = [(slice(at, at + size), deltas[:, at : at + size], shift[at : at + size]) for at in range(0, rows, size)]
    goals = [goal(block, factors) for _, block, _ in blocks]

    def gradient(out: Tensor) -> None:
        for (at, block, own), wanted in zip(blocks, goals, strict=True):
            missing = wanted.sub(torch.linalg.vecdot(block, own), alpha=factor).mul_(-2 * factor).unsqueeze(2)
            torch.mul(block[0], missing[0], out=out[at])
            for delta, weight in zip(block[1:], missing[1:], strict=True):
                out[at].addcmul_(delta, weight)
        out.addmm_(shared, shared.T @ out, alpha=-1)

    descend(shift, gradient, cfg.steps, cfg.lr)
    return shift


def goal(deltas: Float[Tensor, "task rows columns"], factors: list[float]) -> Float[Tensor, "task rows"]:
    """e_j = rowsum(τ_j ⊙ (τ_j − Σ_i λ_i τ_i))."""
    exact = deltas.double()
    merged = torch.einsum("i,irc->rc", exact.new_tensor(factors), exact)
    return torch.linalg.vecdot(exact, exact - merged).float()
