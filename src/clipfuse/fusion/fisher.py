"""Fisher merging: weights averaged entry by entry, each expert's by how much its own predictions depend on them."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.fusion.by_image import gradients_by_image, part
from clipfuse.fusion.forward import Forward
from clipfuse.fusion.lent import TaskImages
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import DeltaConfig, method
from clipfuse.fusion.streams import Run
from clipfuse.order import seed_of
from clipfuse.pool import Leaf, PoolView
from clipfuse.shapes import Float, Int
from clipfuse.stats.gradients import add_gradient, chunks

FISHER = Paper(
    "Merging Models with Fisher-Weighted Averaging", "Matena, Michael and Raffel, Colin", 2022, "2111.09832", "NeurIPS"
)


class FisherMerging(DeltaConfig):
    """Δ = Σ_i c_i (F_i + floor) τ_i / Σ_i c_i (F_i + floor), c_i = 1/(‖F_i‖ + floor)."""

    images: Annotated[int, Field(ge=1, examples=[6])] = 256
    """Training images of each expert's task that F_i is the mean over."""
    floor: Annotated[float, Field(gt=0)] = 1e-6
    """Added to every entry of F_i, so that none is without weight, and to its norm."""
    estimator: Literal["sampled", "exact", "batch_sum"] = "sampled"
    """How F_i is come by: a label sampled for each image, all classes, or the published sums over batches."""
    batch: Annotated[int, Field(ge=1, examples=[4])] = 32
    """Images of a step; with batch_sum, those whose gradients are added up before they are squared."""


@method(paper=FISHER, grain="leaf", uses=("train_images",))
def fisher_merging(view: PoolView, cfg: FisherMerging, run: Run) -> Iterator[tuple[str, Tensor]]:
    """Fisher-weighted averaging (Matena and Raffel, 2022).

    θ = Σ_i c_i (F_i + floor) θ_i / Σ_i c_i (F_i + floor) for every entry, where F_i is the diagonal of expert i's
    Fisher information under its own predictions, a mean over images x of its task (not a sum, which matters beside
    `floor`): F_i = mean_x Σ_c p_c(x) (∂ log p_c(x)/∂θ_i)². `sampled` takes one label from p for each image, which is
    right on average; it is drawn by the run's seed, the expert and the image. `exact` differentiates every class.
    c_i = 1/(‖F_i‖ + floor) gives every expert the same say, ‖F_i‖ over the whole model and in float64.

    An image costs a forward and a backward pass and half as much again for its own squared gradient, `exact` the latter
    two for every class. F of one expert at a time and the two sums are kept in scratch, three models whatever the
    number of experts; batch_sum takes a fourth. Task vectors are read once for every expert.

    Deviations: the figures are of batch_sum, (∂/∂θ Σ_x Σ_c √p_c log p_c)² for each batch x of 32, √p_c held fixed,
    divided by the number of images: not the Fisher information, as gradients of different images and classes cancel.
    They take the first 256 images of each task, here a seeded choice.

    Source: section 3; the floor and the norms are from the code of the figures, FusionBench's.
    """
    forward, sums = Forward(run), Sums(view, cfg, run)
    images = {task: run.data.images(task, "train") for task in view.tasks}
    rows = [images[task].choice(cfg.images) for task in view.tasks]
    steps = [(number, at) for number, own in enumerate(rows) for at in range(0, len(own), cfg.batch)]
    loaded = None
    for step in run.steps(len(steps), sums.state, "fisher_merging"):
        number, at = steps[step]
        task, batch = view.tasks[number], rows[number][at : at + cfg.batch]
        if loaded != number:
            forward.load_expert(number)
            loaded = number
        sums.add(forward, task, images[task], batch)
        if at + len(batch) == len(rows[number]):
            sums.close(number, len(rows[number]))
    for name, weighted in sums.weighted.items():
        yield name, weighted.div_(sums.weights[name])


class Sums:
    """F of the expert at hand, summed over its images, and Σ_i c_i (F_i + floor), alone and with τ_i."""

    def __init__(self, view: PoolView, cfg: FisherMerging, run: Run):
        specs = {name: TensorSpec(spec.shape, torch.float32) for name, spec in view.specs.items()}
        self.view, self.cfg, self.run = replace(view, progress=None), cfg, run
        self.fisher, self.weights, self.weighted = (run.scratch(specs) for _ in range(3))
        self.gradient = run.scratch(specs if cfg.estimator == "batch_sum" else {})

    @property
    def state(self) -> dict[str, Tensor]:
        named = {"fisher": self.fisher, "weights": self.weights, "weighted": self.weighted}
        return {f"{what} {name}": tensor for what, of in named.items() for name, tensor in of.items()}

    def add(self, forward: Forward, task: str, images: TaskImages, batch: list[int]) -> None:
        """Add what the images of a batch tell about the expert that is loaded."""
        if self.gradient:
            for parameter in forward.parameters.values():
                parameter.requires_grad_(True)
        for rows in chunks(batch, forward.tower):
            if self.gradient:
                logs = log_probabilities(forward, task, images, rows)
                add_gradient(all_classes(logs), forward.parameters, self.gradient)
            else:
                self.add_examples(forward, task, images, rows)
        for name, gradient in self.gradient.items():
            self.fisher[name].addcmul_(gradient, gradient)
            gradient.zero_()

    def add_examples(self, forward: Forward, task: str, images: TaskImages, rows: list[int]) -> None:
        """Add Σ_x (∂ log p_y/∂θ)² of a label y for each image, or Σ_x Σ_c p_c (∂ log p_c/∂θ)²."""
        with gradients_by_image(forward, self.fisher, 2):
            logs = log_probabilities(forward, task, images, rows)
            if self.cfg.estimator == "sampled":
                logs.gather(1, sample(logs, self.run.seed, task, rows).unsqueeze(1)).sum().backward()
                return
            for column in logs.unbind(1):  # √p_c within the square
                (column * (column.detach() / 2).exp()).sum().backward(retain_graph=True)

    @torch.no_grad()
    def close(self, number: int, images: int) -> None:
        """Add the terms of an expert whose F is complete; F is empty afterwards."""
        squares = sum(float(torch.linalg.vector_norm(f, dtype=torch.float64)) ** 2 for f in self.fisher.values())
        share = 1 / (squares**0.5 / images + self.cfg.floor)

        def add(leaf: Leaf) -> None:
            fisher, weights, weighted = (part(leaf, of) for of in (self.fisher, self.weights, self.weighted))
            own = fisher.div_(images).add_(self.cfg.floor).mul_(share)
            weights.add_(own)
            weighted.addcmul_(own, leaf.deltas[number].flatten().to(own.device))
            fisher.zero_()

        for _ in self.view.map(add):
            pass


def log_probabilities(forward: Forward, task: str, images: TaskImages, rows: list[int]) -> Float[Tensor, "image class"]:
    return forward.logits(task, images.pixels(rows)).log_softmax(-1)


def all_classes(logs: Float[Tensor, "image class"]) -> Float[Tensor, ""]:
    """Σ_x Σ_c √p_c log p_c, √p_c held fixed."""
    return (logs * (logs.detach() / 2).exp()).sum()


def sample(logs: Float[Tensor, "image class"], seed: int, task: str, rows: list[int]) -> Int[Tensor, "image"]:
    """A label for each image, from its log-probabilities; the same one whatever batch the image is in."""
    upto = logs.detach().double().exp().cumsum(1).cpu()
    generators = [torch.Generator().manual_seed(seed_of(seed, task, "label", row)) for row in rows]
    draws = torch.stack([torch.rand(1, generator=generator, dtype=torch.float64) for generator in generators])
    found = torch.searchsorted(upto, draws * upto[:, -1:], right=True).squeeze(1)
    return found.clamp_(max=logs.shape[1] - 1).to(logs.device)
