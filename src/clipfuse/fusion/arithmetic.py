"""Means and sums: simple and weighted average, task arithmetic."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from clipfuse.config import Config, EmptyConfig
from clipfuse.errors import ConfigError, unknown
from clipfuse.fusion.registry import DeltaConfig, Paper, method
from clipfuse.pool import Leaf, PoolView
from clipfuse.shapes import Float

SOUPS = Paper(
    "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference time",
    "Wortsman, Mitchell and Ilharco, Gabriel and Gadre, Samir Yitzhak and others",
    2022,
    "2203.05482",
    "ICML",
)
TASK_ARITHMETIC = Paper(
    "Editing Models with Task Arithmetic",
    "Ilharco, Gabriel and Ribeiro, Marco Tulio and Wortsman, Mitchell and Schmidt, Ludwig and Hajishirzi, Hannaneh"
    " and Farhadi, Ali",
    2023,
    "2212.04089",
    "ICLR",
)

Weights = Mapping[str, float] | Sequence[float]
"""One number an expert: by name, or in the pool's order."""


def weight_row(weights: Weights, tasks: tuple[str, ...]) -> list[float]:
    """The weights in the pool's order. Raises ConfigError for a name or a count that does not fit the pool."""
    if isinstance(weights, Mapping):
        for name in weights:
            if name not in tasks:
                raise ConfigError("method.weights: " + unknown("expert", name, tasks))
        if missing := [task for task in tasks if task not in weights]:
            raise ConfigError(f"method.weights: expert {missing[0]!r} has none")
        return [weights[task] for task in tasks]
    if len(weights) != len(tasks):
        raise ConfigError(f"method.weights: {len(weights)} numbers for {len(tasks)} experts ({', '.join(tasks)})")
    return list(weights)


def weighted_sum(rows: Float[Tensor, "task *shape"], weights: Sequence[float]) -> Float[Tensor, "*shape"]:
    total = rows[0] * weights[0]
    for row, weight in zip(rows[1:], weights[1:], strict=True):
        total.add_(row * weight)
    return total


@method(paper=SOUPS, grain="element", returns="weights")
def simple_average(leaf: Leaf, cfg: EmptyConfig) -> Float[Tensor, "*shape"]:
    """Mean of the experts' weights (Wortsman et al., 2022).

    θ = (Σ_k θ_k) / T. One pass. Needs no base.

    Source: uniform soup, section 2.
    """
    return leaf.experts.mean(0)


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
    if not sum(weights):
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
    return weighted_sum(leaf.experts, weights)


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
    return leaf.deltas.sum(0) if weights is None else weighted_sum(leaf.deltas, weights)
