"""Means and sums: simple and weighted average, task arithmetic."""

from torch import Tensor

from clipfuse.config import Config, EmptyConfig
from clipfuse.errors import ConfigError
from clipfuse.fusion.blocks import Weights, total, weight_row, weighted_total
from clipfuse.fusion.paper import SOUPS, TASK_ARITHMETIC
from clipfuse.fusion.registry import DeltaConfig, method
from clipfuse.pool import Leaf, PoolView
from clipfuse.shapes import Float


@method(paper=SOUPS, grain="element", returns="weights")
def simple_average(leaf: Leaf, cfg: EmptyConfig) -> Float[Tensor, "*shape"]:
    """Mean of the experts' weights (Wortsman et al., 2022).

    θ = (Σ_k θ_k) / T. One pass. Needs no base.

    Source: uniform soup, section 2.
    """
    return total(leaf.experts).div_(len(leaf.tasks))


class WeightedAverage(Config):
    """θ = Σ_k w_k θ_k, divided by Σ_k w_k if `normalize`."""

    weights: Weights
    """One number an expert, by name or in the pool's order."""
    normalize: bool = True
    """Divide by the sum of the weights."""


def normalised_weights(view: PoolView, cfg: WeightedAverage) -> list[float]:
    weights = weight_row(cfg.weights, view.tasks)
    if not cfg.normalize:
        return weights
    if abs(sum(weights)) <= 1e-9 * sum(map(abs, weights)):
        raise ConfigError("method.weights: they sum to 0 and cannot be normalised")
    return [weight / sum(weights) for weight in weights]


@method(paper=SOUPS, grain="element", returns="weights", prepare=normalised_weights)
def weighted_average(leaf: Leaf, cfg: WeightedAverage, weights: list[float]) -> Float[Tensor, "*shape"]:
    """Weighted mean of the experts' weights.

    θ = Σ_k w_k θ_k (/ Σ_k w_k). One pass. Needs no base.

    Raises:
        ConfigError: weights that do not fit the pool's experts, or sum to zero and should be normalised.

    Source: section 2, with given instead of learned coefficients.
    """
    return weighted_total(leaf.experts, weights)


class TaskArithmetic(DeltaConfig):
    """Δ = Σ_k τ_k, or Σ_k w_k τ_k."""

    scaling_factor: float = 0.3
    """λ in θ0 + λΔ, dimensionless."""
    weights: Weights | None = None
    """One number an expert, by name or in the pool's order; negative ones forget. None is 1 for all."""


def signed_weights(view: PoolView, cfg: TaskArithmetic) -> list[float] | None:
    return None if cfg.weights is None else weight_row(cfg.weights, view.tasks)


@method(paper=TASK_ARITHMETIC, grain="element", prepare=signed_weights)
def task_arithmetic(leaf: Leaf, cfg: TaskArithmetic, weights: list[float] | None) -> Float[Tensor, "*shape"]:
    """Sum of task vectors (Ilharco et al., 2023).

    Δ = Σ_k w_k τ_k with w_k = 1 by default. One pass.

    Raises:
        ConfigError: weights that do not fit the pool's experts.

    Source: section 2; λ = 0.3 as in section 4.2.
    """
    return total(leaf.deltas) if weights is None else weighted_total(leaf.deltas, weights)
