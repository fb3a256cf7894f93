"""One process's share of every step's images."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipfuse.data.augment import augment
from clipfuse.data.gather import Rows
from clipfuse.finetune.recipe import Recipe
from clipfuse.heads import Head
from clipfuse.order import Order


@dataclass(frozen=True)
class TrainingTask:
    """One task's images and its frozen head."""

    name: str
    head: Head
    rows: Rows
    train: Sequence[int]
    """Rows that are trained on."""
    val_rows: Rows | None = None
    val: Sequence[int] = ()
    """Rows of `val_rows` that are validated on."""


@dataclass(frozen=True)
class Part:
    """What goes through one forward pass."""

    task: int
    pixels: Tensor
    """(image, 3, side, side) uint8."""
    labels: Tensor


class Batches:
    """`batch_size` images of every task a step, dealt out to the processes in turns."""

    def __init__(self, tasks: Sequence[TrainingTask], recipe: Recipe, device: torch.device, share: tuple[int, int]):
        self.tasks, self.recipe, self.device, self.share = tasks, recipe, device, share
        self.orders = [Order(len(task.train), task.name, recipe.seed) for task in tasks]

    def rows(self, task: int, step: int) -> list[int]:
        """All rows of a step, of all processes."""
        size = self.recipe.batch_size
        return [self.tasks[task].train[place] for place in self.orders[task].take(step * size, size)]

    def load(self, step: int) -> list[Part]:
        """This process's part of a step, in as many forward passes as `micro_batch_size` asks for."""
        size, (number, count) = self.recipe.batch_size, self.share
        keys = range(step * size, (step + 1) * size)[number::count]
        found = []
        for task, of_task in enumerate(self.tasks):
            rows = self.rows(task, step)[number::count]
            most = self.recipe.micro_batch_size or len(rows)
            for start in range(0, len(rows), most):
                some = rows[start : start + most]
                pixels = of_task.rows.pixels(some, self.device)
                if self.recipe.augment.active:
                    keyed = keys[start : start + most]
                    pixels = augment(pixels, keyed, self.recipe.augment, self.orders[task].seed)
                found.append(Part(task, pixels, of_task.rows.labels[some].to(self.device)))
        return found

    def described(self, step: int) -> str:
        """The first images of a step's batch, for messages."""
        told = []
        for number, task in enumerate(self.tasks):
            split = task.rows.images.split
            told.append(f"{task.name}: {', '.join(map(split.label_of, self.rows(number, step)[:3]))}, …")
        return "; ".join(told)
