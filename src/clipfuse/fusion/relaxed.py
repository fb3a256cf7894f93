"""The relaxed Bernoulli distribution, σ((logit + L)/temperature) with L logistic: counter-based draws, and its mean."""

from functools import cache
from math import ceil

import numpy as np
import torch
from torch import Tensor

from clipfuse.fusion.random_bits import numpy_draws, torch_draws
from clipfuse.shapes import Float

LEVELS = 1 << 16
"""Values of the uniform u behind a draw, L = log u − log(1−u): (i + ½) / LEVELS, so never 0 or 1."""
REACH = 16.0
"""Logistic noise, ±, that the mean is summed over, at steps of the temperature or, above that, of 1."""


@cache
def logistic_table(device: torch.device) -> Float[Tensor, "level"]:
    """log u − log(1−u) of every u that can be drawn."""
    return torch.logit((torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS).float().to(device)


def draw_relaxed(
    parts: tuple[object, ...],
    start: int,
    logits: Float[Tensor, "count"],
    temperature: float,
    out: Float[Tensor, "count"],
) -> None:
    """Fill `out` with draws `start` … of the stream keyed by `parts`, for logits of the same device."""
    table = logistic_table(logits.device)
    if logits.device.type == "cpu":
        noise = torch.from_numpy(np.take(table.numpy(), numpy_draws(parts, start, len(logits))))
    else:
        noise = table[torch_draws(parts, start, len(logits), logits.device)]
    torch.sigmoid(noise.add_(logits).div_(temperature), out=out)


def mean_of_relaxed(logits: Float[Tensor, "count"], temperature: float) -> Float[Tensor, "count"]:
    """E[σ((logits + L)/temperature)], L logistic: the trapezoidal rule, to 1e-6 whatever the logits."""
    points = torch.linspace(-REACH, REACH, 2 * ceil(REACH / min(temperature, 1)) + 1, dtype=torch.float64)
    weights = points.sigmoid() * (-points).sigmoid()
    found = torch.zeros_like(logits)
    for noise, weight in zip(points.tolist(), (weights / weights.sum()).tolist(), strict=True):
        found.add_((logits + noise).div_(temperature).sigmoid_(), alpha=weight)
    return found
