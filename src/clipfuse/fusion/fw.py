"""Frank-Wolfe merging: steps from task arithmetic towards the experts that the loss points at."""

from collections.abc import Iterator
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from clipfuse.fusion.adam import Adam
from clipfuse.fusion.blocks import weighted_total
from clipfuse.fusion.by_image import part
from clipfuse.fusion.forward import Forward
from clipfuse.fusion.mixture import Mixture
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import DeltaConfig, method
from clipfuse.fusion.streams import Run
from clipfuse.pool import Leaf, PoolView
from clipfuse.shapes import Float
from clipfuse.stats.gradients import chunks
from clipfuse.stats.norms import STRETCH

FRANK_WOLFE = Paper(
    "FW-Merging: Scaling Model Merging with Frank-Wolfe Optimization",
    "Chen, Hao Mark and Hu, Shell Xu and Luk, Wayne and Hospedales, Timothy and Fan, Hongxiang",
    2025,
    "2503.12649",
    "ICCV",
)


class FwMerging(DeltaConfig):
    """Δ ← Δ + step_size (τ_pick − Δ), pick = argmin_i ⟨∇L(θ0 + Δ), θ_i⟩, from Δ = init · Σ_k τ_k."""

    mode: Literal["hard", "soft"] = "hard"
    """A step towards one expert, or towards all of them, each by a factor that is learned for every parameter."""
    steps: Annotated[int, Field(ge=1, examples=[2])] = 10
    """Frank-Wolfe steps."""
    init: float = 0.3
    """Factor of the sum of all task vectors that it starts from; in mode=soft, of the first step's experts."""
    images: Annotated[int, Field(ge=1, examples=[5])] = 100
    """hard: training images of each task that a step's gradient is of."""
    step_size: Annotated[float, Field(gt=0, le=1)] = 0.1
    """hard: share of the way to the expert that a step goes."""
    decay: bool = False
    """hard: multiply step_size by 2/(t + 2) at step t = 0, 1, …, as published."""
    score: Literal["inner_product", "cosine"] = "inner_product"
    """hard: what is smallest for the pick, ⟨∇, θ_i⟩, or as published its cosine, added up over parameters."""
    granularity: Literal["task", "layer"] = "task"
    """hard: whether all parameters go towards the same expert, or each towards its own pick."""
    inner_steps: Annotated[int, Field(ge=1, examples=[2])] = 500
    """soft: Adam's steps within a step."""
    batch: Annotated[int, Field(ge=1, examples=[3])] = 16
    """soft: training images of each task in one of Adam's steps."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """soft: Adam's step size."""


@method(paper=FRANK_WOLFE, grain="leaf", uses=("train_images", "train_labels"))
def fw_merging(view: PoolView, cfg: FwMerging, run: Run) -> Iterator[tuple[str, Tensor]]:
    """Frank-Wolfe merging (Chen et al., 2025).

    L is the mean over tasks of the cross-entropy of training images. hard: from Δ = init · Σ_k τ_k, ∇L at θ0 + Δ picks
    the expert of the smallest ⟨∇L, θ_i⟩, and Δ ← Δ + step_size (τ_pick − Δ). soft: from Δ = 0,
    Δ ← Δ + Σ_i λ_i (τ_i − Δ), λ_i a number for each parameter that Adam finds for L, from `init` in the first step and
    from 0 in later ones. Both are kept as coefficients of the task vectors, one for each parameter and expert.

    A hard step costs a forward and a whole backward pass for `images` of every task, and reads the task vectors twice;
    a soft one does that inner_steps times with `batch` images. One gradient in memory beside the model.

    Deviations: the figures are of score = cosine and decay = true with step_size = .03 (their .1 · .3), the point of
    departure being one more pick (so it is with cosine here). Theirs of soft minimise the entropy of test images, here
    labelled training images are used, which their code offers; it lets each task pick another expert first, which
    leaves none out as long as there are as many tasks, and begins later λ at 1e-8.

    Source: the paper's hard and soft variants, and their code, FusionBench's FrankWolfeHardAlgorithm and
    FrankWolfeSoftAlgorithm.
    """
    forward = Forward(run)
    mixture = Mixture(view, forward)
    for parameter in forward.parameters.values():
        parameter.requires_grad_(True)
        parameter.grad = torch.zeros_like(parameter)
    coefficients = (go_soft if cfg.mode == "soft" else go_hard)(mixture, cfg, run)
    for parameter in forward.parameters.values():
        parameter.requires_grad_(False).grad = None
    rows = dict(zip(mixture.names, coefficients.tolist(), strict=True))
    yield from view.map(lambda leaf: (leaf.name, weighted_total(leaf.deltas, rows[leaf.name])), "leaf")


def go_hard(mixture: Mixture, cfg: FwMerging, run: Run) -> Float[Tensor, "parameter task"]:
    """Coefficients of the task vectors after all steps."""
    forward, tasks = mixture.forward, mixture.view.tasks
    images = {task: run.data.images(task, "train") for task in tasks}
    passes = [
        (number, task, some)
        for number in range(cfg.steps)
        for task in tasks
        for some in chunks(images[task].rows(number, cfg.images), forward.tower)
    ]
    picks = Picks(mixture, cfg)
    coefficients = torch.full((len(mixture.names), len(tasks)), cfg.init, dtype=torch.float64)
    slopes = {name: parameter.grad for name, parameter in forward.parameters.items() if parameter.grad is not None}
    state = {"coefficients": coefficients, "picked": picks.picked, **{f"slope {n}": s for n, s in slopes.items()}}
    spread = None
    for step in run.steps(len(passes), state, "fw_merging"):
        number, task, some = passes[step]
        if spread != number:
            mixture.spread(coefficients)
            spread = number
        loss = total_loss(forward, run, task, some)
        (loss / (cfg.images * len(tasks))).backward()
        run.say(f"loss {float(loss.detach()) / len(some):.3f}")
        if step + 1 == len(passes) or passes[step + 1][0] != number:
            share = cfg.step_size * (2 / (number + 2) if cfg.decay else 1)
            coefficients.lerp_(picks.choose(slopes), share)
            for slope in slopes.values():
                slope.zero_()
    for name, count in zip((*tasks, "start"), picks.picked.tolist(), strict=True):
        run.tally[f"fw_merging.towards.{name}"] += count
    return coefficients


class Picks:
    """What a step can go towards: every expert and, with cosine, the point of departure."""

    def __init__(self, mixture: Mixture, cfg: FwMerging):
        self.view, self.place, self.cfg = mixture.view, mixture.place, cfg
        count = len(self.view.tasks)
        start = torch.full((1, count), cfg.init, dtype=torch.float64)
        self.vertices = torch.cat([torch.eye(count, dtype=torch.float64), start][: 2 if cfg.score == "cosine" else 1])
        """Coefficients of each, (pick, task)."""
        self.picked = torch.zeros(count + 1, dtype=torch.int64)
        """How many parameters went towards each, over all steps."""

    def choose(self, slopes: dict[str, Tensor]) -> Float[Tensor, "parameter task"]:
        """Coefficients of what each parameter goes towards."""
        scores = self.scores(slopes)
        found = scores.argmin(1) if self.cfg.granularity == "layer" else scores.sum(0).argmin().expand(len(scores))
        self.picked += found.bincount(minlength=len(self.picked))
        return self.vertices[found]

    @torch.no_grad()
    def scores(self, slopes: dict[str, Tensor]) -> Float[Tensor, "parameter pick"]:
        """⟨∇, θ⟩ of every parameter and pick, or their cosine; float64 sums."""
        count = len(self.vertices)
        sums = torch.zeros(len(self.place), count, 2, dtype=torch.float64)  # ⟨∇, θ⟩, ‖θ‖²

        def products(leaf: Leaf) -> tuple[int, Tensor]:
            slope = part(leaf, slopes).to(leaf.deltas.device)
            found = slope.new_zeros(count, 2, dtype=torch.float64)
            vertices = self.vertices.to(slope.device)
            stretches = (values.split(STRETCH, -1) for values in (slope, leaf.base.flatten(), leaf.deltas.flatten(1)))
            for own, base, deltas in zip(*stretches, strict=True):
                weights = base.double() + vertices @ deltas.double()  # (pick, element)
                found[:, 0] += weights @ own.double()
                found[:, 1] += weights.square().sum(1)
            return self.place[leaf.name], found.cpu()

        for row, found in self.view.map(products):
            sums[row] += found
        if self.cfg.score == "inner_product":
            return sums[:, :, 0]
        norms = [float(torch.linalg.vector_norm(slopes[name], dtype=torch.float64)) for name in self.place]
        lengths = sums[:, :, 1].sqrt() * torch.tensor(norms, dtype=torch.float64).unsqueeze(1)
        return torch.where(lengths > 0, sums[:, :, 0] / lengths, 0)


def go_soft(mixture: Mixture, cfg: FwMerging, run: Run) -> Float[Tensor, "parameter task"]:
    """Coefficients of the task vectors after all steps."""
    forward, tasks = mixture.forward, mixture.view.tasks
    images = {task: run.data.images(task, "train") for task in tasks}
    begun = torch.zeros(len(mixture.names), len(tasks))  # where the step at hand set out from
    factors = torch.full_like(begun, cfg.init)
    adam = Adam({"factors": factors}, cfg.lr)
    for step in run.steps(cfg.steps * cfg.inner_steps, {"begun": begun, **adam.state}, "fw_merging"):
        mixture.spread(moved(begun, factors))
        losses = 0.0
        for task in tasks:
            for some in chunks(images[task].rows(step, cfg.batch), forward.tower):
                loss = total_loss(forward, run, task, some) / (cfg.batch * len(tasks))
                loss.backward()
                losses += float(loss.detach())
        run.say(f"loss {losses:.3f}")
        slopes = mixture.pull_back()
        for parameter in forward.parameters.values():
            assert parameter.grad is not None
            parameter.grad.zero_()
        adam.step({"factors": slopes - (begun * slopes).sum(1, keepdim=True)})
        if (step + 1) % cfg.inner_steps == 0:
            begun.copy_(moved(begun, factors))
            for tensor in adam.state.values():
                tensor.zero_()
    return begun


def moved(begun: Float[Tensor, "parameter task"], factors: Float[Tensor, "parameter task"]) -> Tensor:
    """Coefficients of Δ + Σ_i λ_i (τ_i − Δ)."""
    return begun * (1 - factors.sum(1, keepdim=True)) + factors


def total_loss(forward: Forward, run: Run, task: str, rows: list[int]) -> Float[Tensor, ""]:
    """Σ_x of the cross-entropy of training images."""
    images = run.data.images(task, "train")
    return functional.cross_entropy(forward.logits(task, images.pixels(rows)), images.labels(rows), reduction="sum")
