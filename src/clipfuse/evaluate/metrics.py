"""What is counted of predictions."""

from collections.abc import Mapping, Sequence
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from clipfuse.shapes import Int

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


def confusion(
    labels: Int[Tensor, "image"], predictions: Int[Tensor, "image"], classes: int
) -> Int[Tensor, "true said"]:
    """How many images of each true class (row) were said to be of each class (column)."""
    cells = labels.long() * classes + predictions.long()
    return torch.bincount(cells, minlength=classes * classes).view(classes, classes)


def most_confused(matrix: Int[Tensor, "true said"], names: Sequence[str], most: int = 10) -> list[tuple[str, str, int]]:
    """The cells off the diagonal with most images: true class, prediction, images; the first of equals first."""
    wrong: Tensor = matrix.clone().fill_diagonal_(0).flatten()
    order: list[int] = torch.argsort(wrong, descending=True, stable=True)[:most].tolist()
    return [(names[cell // len(names)], names[cell % len(names)], int(wrong[cell])) for cell in order if wrong[cell]]


def by_task(joint: Int[Tensor, "image"], ends: Sequence[int], tasks: Sequence[str]) -> Mapping[str, int]:
    """How many predictions of a joint head are classes of each task; `ends` are where tasks end, in order."""
    found = np.bincount(np.searchsorted(ends, joint.numpy(), side="right"), minlength=len(tasks))
    return dict(zip(tasks, found.tolist(), strict=True))


def wilson(correct: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson score interval of a proportion, each end in [0, 1] (Wilson, 1927)."""
    if n == 0:
        return 0.0, 1.0
    p, spread = correct / n, z * z / n
    centre = (p + spread / 2) / (1 + spread)
    half = z * sqrt(p * (1 - p) / n + spread / (4 * n)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def far_above(test: tuple[int, int], val: tuple[int, int], errors: float = 3.0) -> str | None:
    """A warning where (correct, n) on test is more than three standard errors above that on val, else None.

    Of two proportions with the pooled variance. A model that never saw the test images is about as good on both, and
    better on val where that is part of what it was trained on.
    """
    (right, n), (known, m) = test, val
    pooled = (right + known) / (n + m)
    error = sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    gap = right / n - known / m
    if gap <= errors * error:
        return None
    return (
        f"accuracy on test ({100 * right / n:.1f} %) is {gap / error:.1f} standard errors above that on val "
        f"({100 * known / m:.1f} %): was it trained on test images?"
    )
