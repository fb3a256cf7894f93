"""Between models: on the line through two, on the arc between two, on the sphere among many."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from clipfuse.config import Config
from clipfuse.errors import ConfigError
from clipfuse.fusion.blocks import Weights, weight_row, weighted_total
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import method
from clipfuse.pool import Leaf, PoolView
from clipfuse.pool.view import SLICE
from clipfuse.shapes import Float

WISE_FT = Paper(
    "Robust fine-tuning of zero-shot models",
    "Wortsman, Mitchell and Ilharco, Gabriel and Kim, Jong Wook and Li, Mike and others",
    2022,
    "2109.01903",
    "CVPR",
)
SLERP = Paper("Animating Rotation with Quaternion Curves", "Shoemake, Ken", 1985, "", "SIGGRAPH")
SPHERICAL_AVERAGES = Paper(
    "Spherical Averages and Applications to Spherical Splines and Interpolation",
    "Buss, Samuel R. and Fillmore, Jay P.",
    2001,
    "",
    "ACM Transactions on Graphics",
)

NEARLY_PARALLEL = 0.9995
"""|cos| above which the arc is a straight line in float32."""
CONVERGED = 1e-10
"""Length of a step, radians, that changes nothing in float32 and is still above the noise of a float64 Gram."""
CANCELLED = 1e-6
"""Length of a mean of unit vectors, or distance of an angle from π in radians, that has no direction any more."""


class LinearInterpolation(Config):
    """θ = (1−t) θ_a + t θ_b."""

    t: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Way from the first expert (0) to the second (1)."""


@method(paper=WISE_FT, grain="element", returns="weights", models=2, affine_in="t")
def linear_interpolation(leaf: Leaf, cfg: LinearInterpolation) -> Float[Tensor, "*shape"]:
    """Straight line between two models (Wortsman et al., 2022).

    θ = (1−t) θ_a + t θ_b; t = 0 and t = 1 give the experts themselves, bit for bit. One pass. Needs no base; with
    exactly two experts, of which the zero-shot model may be one.

    Source: equation 1.
    """
    a, b = leaf.experts
    return a * (1 - cfg.t) + b * cfg.t


class Slerp(Config):
    """θ = (sin((1−t)Ω) θ_a + sin(tΩ) θ_b) / sin Ω, per tensor; Ω is the angle between θ_a and θ_b."""

    t: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Way from the first expert (0) to the second (1)."""


@method(paper=SLERP, grain="leaf", returns="weights", models=2)
def slerp(leaf: Leaf, cfg: Slerp) -> Float[Tensor, "*shape"]:
    """Spherical linear interpolation of two models, tensor by tensor (Shoemake, 1985).

    θ = (sin((1−t)Ω) θ_a + sin(tΩ) θ_b) / sin Ω with cos Ω = ⟨θ_a, θ_b⟩ / (‖θ_a‖ ‖θ_b‖); linear if |cos Ω| > 0.9995
    or where a tensor is zero. One pass. Needs no base; with exactly two experts.

    Source: section 3.3; per tensor as mergekit and FusionBench do.
    """
    a, b = leaf.experts
    (aa, ab), (_, bb) = inner_products(leaf.experts).tolist()
    norms = math.sqrt(aa * bb)
    cosine = ab / norms if norms else 1.0
    if abs(cosine) > NEARLY_PARALLEL:
        return a * (1 - cfg.t) + b * cfg.t
    angle = math.acos(cosine)
    return a * (math.sin((1 - cfg.t) * angle) / math.sin(angle)) + b * (math.sin(cfg.t * angle) / math.sin(angle))


class MultiSlerp(Config):
    """θ = Σ_k w_k‖θ_k‖ · argmin_u Σ_k w_k ∠(u, θ_k)² over unit vectors u, per tensor."""

    weights: Weights | None = None
    """One number ≥ 0 an expert, by name or in the pool's order; divided by their sum. None is equal weights."""
    steps: Annotated[int, Field(ge=1)] = 20
    """Most steps of the iteration; it ends as soon as one is shorter than 1e-10 radians."""


def shares(view: PoolView, cfg: MultiSlerp) -> list[float]:
    row = [1.0] * len(view.tasks) if cfg.weights is None else weight_row(cfg.weights, view.tasks)
    if min(row) < 0 or not sum(row):
        raise ConfigError(f"method.weights: takes numbers ≥ 0 that are not all 0 (found {row})")
    return [weight / sum(row) for weight in row]


@method(paper=SPHERICAL_AVERAGES, grain="leaf", returns="weights", prepare=shares)
def multi_slerp(leaf: Leaf, cfg: MultiSlerp, weights: list[float]) -> Float[Tensor, "*shape"]:
    """Weighted mean of any number of models on the sphere, tensor by tensor (Buss and Fillmore, 2001).

    The direction is the Karcher mean of u_k = θ_k/‖θ_k‖: from m = Σ w_k u_k / ‖Σ w_k u_k‖ repeat
    v = Σ w_k φ_k/sin φ_k (u_k − cos φ_k m), φ_k = ∠(m, u_k), and m ← cos‖v‖ m + sin‖v‖ v/‖v‖. All of it takes place
    in the span of the experts, so that the T × T inner products, in float64, are all that is read: one pass for them
    and one for the sum. Needs no base.

    Deviations: the paper has unit vectors only. The result's norm is the weighted mean Σ w_k‖θ_k‖, as in mergekit
    (`multislerp`, `karcher`); so two experts of unequal norms give the direction of a point on the arc of their unit
    vectors, where `slerp` interpolates the vectors themselves (the two agree for equal norms). A zero tensor has no
    direction: it counts in the norm only. An expert opposite to m does not pull. Where the directions cancel
    (‖Σ w_k u_k‖ < 1e-6), no mean is nearer than others and the weighted average Σ w_k θ_k is taken.

    Raises:
        ConfigError: weights that do not fit the pool's experts, are negative or all zero.

    Source: algorithm A1.
    """
    return weighted_total(leaf.experts, karcher_factors(inner_products(leaf.experts), weights, cfg.steps))


def inner_products(rows: Float[Tensor, "task *shape"]) -> Float[Tensor, "task task"]:
    """⟨θ_i, θ_j⟩, float64 on the CPU, summed slice by slice."""
    found = rows.new_zeros(len(rows), len(rows), dtype=torch.float64)
    for part in rows.flatten(1).split(SLICE, dim=1):
        wide = part.double()
        found.addmm_(wide, wide.T)
    return found.cpu()


def karcher_factors(products: Float[Tensor, "task task"], weights: list[float], steps: int) -> list[float]:
    """c with Σ_k c_k θ_k the weighted Karcher mean of the θ_k, given their inner products and weights of sum 1."""
    given = products.new_tensor(weights)
    norms = products.diagonal().sqrt()
    inverse = torch.where(norms > 0, 1 / norms, 0)
    cosines = products * inverse[:, None] * inverse

    def length(factors: Tensor) -> float:
        return math.sqrt(max(float(factors @ cosines @ factors), 0.0))

    pulls = given * (norms > 0)
    pulls /= pulls.sum().clamp_min(1e-300)
    start = length(pulls)
    if start < CANCELLED:
        return weights
    mean = pulls / start  # everything from here on is in coordinates of the u_k
    for _ in range(steps):
        cosine = (cosines @ mean).clamp_(-1, 1)
        sine = (1 - cosine.square()).sqrt()
        stretch = torch.where(sine > CANCELLED, cosine.acos() / sine, (cosine > 0).double())
        pull = pulls * stretch
        step = pull - (pull @ cosine) * mean
        size = length(step)
        if size <= CONVERGED:
            break
        mean = math.cos(size) * mean + (math.sin(size) / size) * step
        mean /= length(mean)
    return ((given @ norms) * mean * inverse).tolist()
