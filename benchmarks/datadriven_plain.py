"""What methods that look at data cannot undercut: bare passes over tensors that are ready, on weights that stay."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from clipfuse.fusion.lent import Lent
from clipfuse.stats.gradients import chunks

GIVEN = ("q_proj", "out_proj", "fc1", "fc2")
"""The Linear layers of a transformer's layer that are given different tensors: k and v are given what q is."""


@dataclass(frozen=True)
class Plain:
    """A CLIPVisionModel, and the heads and images that a method is lent."""

    tower: Any
    lent: Lent

    def logs(self, task: str, pixels: Tensor) -> Tensor:
        """Log-probabilities (image, class)."""
        head = self.lent.heads[task]
        features = functional.linear(self.tower(pixel_values=pixels).pooler_output, self.lent.projection)
        return (head.scale * functional.normalize(features, dim=-1) @ head.weights.T).log_softmax(-1)

    def batches(self, step: int, batch: int) -> dict[str, Tensor]:
        """The pixels of a step of a method that learns on val images, by task."""
        sets = {task: self.lent.images(task, "val") for task in self.lent.tasks}
        return {task: images.pixels(images.rows(step, batch)) for task, images in sets.items()}

    def entropy_step(self, batches: Mapping[str, Tensor]) -> float:
        """Seconds of a forward and a backward pass by the mean entropy of each task's batch, for all parameters."""
        began = time.perf_counter()
        self.tower.zero_grad()
        for task, pixels in batches.items():
            logs = self.logs(task, pixels)
            (-(logs.exp() * logs).sum(-1).mean()).backward()
        return time.perf_counter() - began

    def labelled_passes(self, task: str, images: int) -> float:
        """Seconds of a forward and a backward pass of every batch, with labels, for all parameters."""
        found = self.lent.images(task, "train")
        parts = [found.pixels(rows) for rows in chunks(found.choice(images), self.tower)]
        spent = 0.0
        for pixels in parts:
            began = time.perf_counter()
            self.tower.zero_grad()
            self.logs(task, pixels)[:, 0].sum().backward()
            spent += time.perf_counter() - began
        return spent


class Grams:
    """XᵀX of every distinct input of Linear layers: one product a batch, float32, added up in float64."""

    def __init__(self, tower: nn.Module):
        linears = ((name, part) for name, part in tower.named_modules() if isinstance(part, nn.Linear))
        widths = {name: part.in_features for name, part in linears if name.endswith(GIVEN)}
        self.totals = {name: torch.zeros(width, width, dtype=torch.float64) for name, width in widths.items()}
        self.rooms = {width: torch.empty(width, width) for width in widths.values()}

    @torch.no_grad()
    def passes(self, tower: nn.Module, batches: Iterable[Tensor]) -> float:
        """Seconds of the forward passes of an expert, and of its Gram matrices."""
        for total in self.totals.values():
            total.zero_()
        handles = [tower.get_submodule(name).register_forward_pre_hook(self.count(name)) for name in self.totals]
        began = time.perf_counter()
        for pixels in batches:
            tower(pixel_values=pixels)
        spent = time.perf_counter() - began
        for handle in handles:
            handle.remove()
        return spent

    def count(self, name: str) -> Any:
        def hook(_: nn.Module, given: Sequence[Tensor]) -> None:
            rows = given[0].flatten(0, -2)
            self.totals[name] += torch.mm(rows.T, rows, out=self.rooms[rows.shape[-1]])

        return hook
