"""Adam, in place: for rules that learn something step by step."""

import math
from collections.abc import Callable, Mapping

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
    for step in range(1, steps + 1):
        gradient(slope)
        advance(x, slope, mean, square, step, lr)


def advance(x: Tensor, slope: Tensor, mean: Tensor, square: Tensor, step: int, lr: float) -> None:
    """One step of Adam, the `step`-th from 1 on, in place on `x` and its two moments; all contiguous, of one shape."""
    part = PART if x.device.type == "cpu" else max(x.numel(), 1)  # on a device an operation costs its launch
    room = x.new_empty(min(part, x.numel()))
    rate, root = lr / (1 - BETA1**step), math.sqrt(1 - BETA2**step)
    for at, g, m, v in zip(*(array.view(-1).split(part) for array in (x, slope, mean, square)), strict=True):
        m.lerp_(g, 1 - BETA1)
        v.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
        width = torch.sqrt(v, out=room[: v.numel()]).add_(EPS * root)  # times root: spares a division
        at.addcdiv_(m, width, value=-rate * root)


class Adam:
    """Adam on several parameters, in place; `state` is all that a later step depends on."""

    def __init__(self, parameters: Mapping[str, Tensor], lr: float, moments: Mapping[str, Tensor] | None = None):
        """`moments` are zeros named `mean NAME` and `square NAME`, for parameters whose own should lie in scratch."""
        self.parameters, self.lr = dict(parameters), lr
        kinds = [(kind, name) for kind in ("mean", "square") for name in parameters]
        made = {f"{kind} {name}": torch.zeros_like(parameters[name]) for kind, name in kinds if moments is None}
        self.moments = dict(moments or made)
        self.taken = torch.zeros((), dtype=torch.int64)

    @property
    def state(self) -> dict[str, Tensor]:
        """Parameters, moments and the number of steps."""
        return {**self.parameters, **self.moments, "taken": self.taken}

    def step(self, gradients: Mapping[str, Tensor]) -> None:
        """One step of all parameters."""
        self.taken += 1
        for name, value in self.parameters.items():
            mean, square = self.moments[f"mean {name}"], self.moments[f"square {name}"]
            advance(value, gradients[name].contiguous(), mean, square, int(self.taken), self.lr)
