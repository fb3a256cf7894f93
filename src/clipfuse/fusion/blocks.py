"""Pieces that two or more rules share; a rule imports this module, never another rule."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor

from clipfuse.errors import ConfigError, unknown
from clipfuse.shapes import Float

Weights = Annotated[
    Mapping[str, float] | Sequence[float], Field(examples=[{"digits": 0.5, "signs": 0.3, "roads": 0.2}])
]
"""One number an expert: by name, or in the pool's order."""


def total(rows: Float[Tensor, "task *shape"]) -> Float[Tensor, "*shape"]:
    """Σ over the first dimension, pairwise, in new memory.

    The error grows with log T, and the bits do not depend on how leaves are cut into slices.
    """
    if rows.shape[0] == 1:
        return rows[0].clone()
    count = rows.shape[0] // 2
    sums = rows[:count] + rows[count : 2 * count]
    if rows.shape[0] % 2:
        sums[0].add_(rows[-1])
    while count > 1:
        half = count // 2
        if count % 2:
            sums[0].add_(sums[count - 1])
        sums[:half].add_(sums[half : 2 * half])
        count = half
    return sums[0]


def rank_of(fraction: float, full: int) -> int:
    """⌈fraction · full⌉, at least 1, whatever binary floats make of it: 0.07 · 100 = 7.000000000000001 is 7."""
    return max(1, math.ceil(round(fraction * full, 9)))


def mean(rows: Float[Tensor, "task *shape"]) -> Float[Tensor, "*shape"]:
    """Mean over the first dimension, pairwise, in new memory."""
    return total(rows).div_(len(rows))


def weighted_total(rows: Float[Tensor, "task *shape"], weights: Sequence[float]) -> Float[Tensor, "*shape"]:
    """Σ_k w_k · row_k, pairwise."""
    return total(rows * rows.new_tensor(weights).view(-1, *[1] * (rows.ndim - 1)))


def weight_row(weights: Weights, tasks: tuple[str, ...], setting: str = "weights") -> list[float]:
    """The weights in the pool's order. Raises ConfigError for a name or a count that does not fit the pool."""
    where = f"method.{setting}"
    if isinstance(weights, Mapping):
        for name in weights:
            if name not in tasks:
                raise ConfigError(f"{where}: " + unknown("expert", name, tasks))
        if missing := [task for task in tasks if task not in weights]:
            raise ConfigError(f"{where}: expert {missing[0]!r} has none")
        return [weights[task] for task in tasks]
    if len(weights) != len(tasks):
        raise ConfigError(f"{where}: {len(weights)} numbers for {len(tasks)} experts ({', '.join(tasks)})")
    return list(weights)
