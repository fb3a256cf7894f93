"""The loss of what is learned by entropy, with nothing but torch in float64: one graph, from weights to the loss."""

from collections.abc import Mapping
from copy import deepcopy

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from clipfuse.fusion.forward import Forward
from clipfuse.fusion.lent import Lent


class EntropyReference:
    """Σ_tasks of the mean entropy of a step's batch of val images, by weights under canonical names."""

    def __init__(self, forward: Forward, lent: Lent, batch: int):
        self.tower = deepcopy(forward.tower).double().requires_grad_(False)
        self.places, self.lent, self.batch = forward.places, lent, batch

    def __call__(self, weights: Mapping[str, Tensor], step: int) -> Tensor:
        losses = []
        stored = {self.places[name]: value for name, value in weights.items()}
        for task in self.lent.tasks:
            images, head = self.lent.images(task, "val"), self.lent.heads[task]
            pixels = images.pixels(images.rows(step, self.batch)).double()
            pooled = functional_call(self.tower, stored, (), {"pixel_values": pixels}).pooler_output
            unit = functional.normalize(pooled @ self.lent.projection.double().T, dim=-1)
            shares = (head.scale * unit @ head.weights.double().T).softmax(-1)
            losses.append(-(shares * shares.log()).sum(-1).mean())
        return torch.stack(losses).sum()
