"""Adam, in place on one tensor: for rules that learn a task vector step by step."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from clipfuse.shapes import Float

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
"""The paper's and torch's defaults, which the field's figures were made with."""
PART = 32_768
"""Elements that an update works on at a time: the five arrays that it touches fit a core's second-level cache."""


def descend(
    x: Float[Tensor, "*shape"], gradient: Callable[[Float[Tensor, "*shape"]], object], steps: int, lr: float
) -> None:
    """`steps` of Adam (Kingma and Ba, 2015) on `x`, contiguous, in place; `gradient(out)` writes the gradient at `x`.

    m ← β1·m + (1−β1)·g; v ← β2·v + (1−β2)·g²; x ← x − lr/(1−β1ᵗ) · m / (√(v/(1−β2ᵗ)) + ε): the path of
    `torch.optim.Adam`, without importing torch's compiler, which that does at its first step. Takes four arrays more.
    """
    slope, mean, square = torch.empty_like(x), torch.zeros_like(x), torch.zeros_like(x)
    part = PART if x.device.type == "cpu" else x.numel()  # on a device an operation costs its launch
    parts = list(zip(*(array.view(-1).split(part) for array in (x, slope, mean, square)), strict=True))
    room = x.new_empty(min(part, x.numel()))
    for step in range(1, steps + 1):
        gradient(slope)
        rate, root = lr / (1 - BETA1**step), math.sqrt(1 - BETA2**step)
        for at, g, m, v in parts:
            m.lerp_(g, 1 - BETA1)
            v.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
            width = torch.sqrt(v, out=room[: v.numel()]).add_(EPS * root)  # times root: spares a division
            at.addcdiv_(m, width, value=-rate * root)
