"""RegMean and RegMean++: per Linear weight, the least-squares answer to what the experts make of their own inputs."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.errors import PoolError
from clipfuse.fusion.blocks import mean
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import DeltaConfig, method
from clipfuse.fusion.walk import STEM, Walk
from clipfuse.pool import Leaf, PoolView
from clipfuse.stats.input_grams import Gram, linears_by_input, watched

REGMEAN = Paper(
    "Dataless Knowledge Fusion by Merging Weights of Language Models",
    "Jin, Xisen and Ren, Xiang and Preotiuc-Pietro, Daniel and Cheng, Pengxiang",
    2023,
    "2212.09849",
    "ICLR",
)
REGMEAN_PLUSPLUS = Paper(
    "RegMean++: Enhancing Effectiveness and Generalization of Regression Mean for Model Merging",
    "Nguyen, The-Hai and Dang, Huu-Tien and Suzuki, Takeshi and Nguyen, Le-Minh",
    2026,
    "2508.03121",
    "TMLR",
)

TINY = torch.finfo(torch.float32).tiny
"""In place of the mean square of inputs that are all zero: the damping alone makes the mean of such experts."""
MOST_DAMPING = 1e3
"""Where a matrix is not positive definite with that much, it holds NaN or Inf."""


class Regmean(DeltaConfig):
    """Δ = (Σ_i τ_i G_i)(Σ_i G_i)⁻¹ per Linear weight, G_i = XᵀX/n of its inputs with off-diagonals × shrink."""

    images: Annotated[int, Field(ge=1, examples=[8])] = 256
    """Training images of each expert's task."""
    shrink: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Factor of the off-diagonal entries of every G_i; 1 leaves them, 0 weighs inputs one by one."""
    damping: Annotated[float, Field(gt=0)] = 1e-6
    """Added to the diagonal of every G_i, in units of that diagonal's mean."""


class RegmeanPlusplus(Regmean):
    """Δ = (Σ_i τ_i G_i)(Σ_i G_i)⁻¹ per Linear weight, G_i of inputs that come through the merged layers below."""

    post_layernorm: Literal["mean", "base"] = "mean"
    """The LayerNorm behind the last layer: the experts' mean, or the base's, as in the published figures."""


class Regression:
    """Σ_i G_i and Σ_i τ_i G_i of one layer's Linear weights, float64, and the Δ of all layers that are solved."""

    def __init__(self, walk: Walk, run: Any, cfg: Regmean):
        self.walk, self.cfg, self.run = walk, cfg, run
        walk.load(0, {})
        one = torch.zeros_like(walk.hidden[walk.view.tasks[0]][:1], device=walk.device)
        self.groups = linears_by_input(walk.layer(0), lambda: walk.through(0, one))
        widths = {names[0]: walk.deltas[weight(names[0])].shape[2] for names in self.groups}
        self.grams = {leader: Gram(width, walk.device) for leader, width in widths.items()}
        """Of one expert at a time, each under the first of the Linear layers that share it."""
        shapes: dict[str, tuple[int, ...]] = {leader: (width, width) for leader, width in widths.items()}
        self.sums = run.scratch({name: TensorSpec(shape, torch.float64) for name, shape in shapes.items()})
        shapes = {name: tuple(walk.deltas[weight(name)].shape[1:]) for names in self.groups for name in names}
        self.products = run.scratch({name: TensorSpec(shape, torch.float64) for name, shape in shapes.items()})
        self.sizes = torch.zeros(len(self.groups), len(walk.view.tasks), dtype=torch.float64)
        """Mean squares of an input."""
        self.counts = torch.zeros(2, dtype=torch.int64)
        """Systems that were solved, and those that took more damping."""
        inside = [name for layer in range(walk.layers) for name in walk.names(layer).values()]
        self.found = run.scratch({name: TensorSpec(walk.view.specs[name].shape, torch.float32) for name in inside})

    @property
    def state(self) -> dict[str, Tensor]:
        """All that is needed to go on."""
        named = (("sum", self.sums), ("product", self.products), ("delta", self.found))
        tensors = {f"{what} {name}": tensor for what, of in named for name, tensor in of.items()}
        return {**self.walk.state, **tensors, "sizes": self.sizes, "counts": self.counts}

    def add(self, number: int) -> None:
        """Add the terms of an expert whose Gram matrices are full; they are empty afterwards."""
        for group, names in enumerate(self.groups):
            gram = self.grams[names[0]]
            squares, each = gram.whole(), self.cfg.shrink / gram.rows
            diagonal = squares.diagonal() / gram.rows
            size = diagonal.mean().clamp(min=TINY)
            extra = (1 - self.cfg.shrink) * diagonal + self.cfg.damping * size
            for name in names:
                delta = self.walk.deltas[weight(name)][number].to(squares)
                self.products[name].add_(torch.mm(delta, squares).mul_(each).addcmul_(delta, extra).cpu())
            total = self.sums[names[0]].add_(squares.cpu(), alpha=each)
            total.diagonal().add_(extra.cpu())
            self.sizes[group, number] = size
            gram.clear()

    def solve(self, layer: int) -> None:
        """Δ of a layer to which every expert has been added; the sums are empty afterwards."""
        inside = self.walk.names(layer)
        for name, whole in inside.items():
            if name.removesuffix(".weight") not in self.products:
                self.found[whole].copy_(mean(self.walk.deltas[name]))
        for names, sizes in zip(self.groups, self.sizes, strict=True):
            factor = self.factorise(names, sizes, inside[weight(names[0])])
            for name in names:
                solved = torch.cholesky_solve(self.products[name].to(factor).mT, factor)
                self.found[inside[weight(name)]].copy_(solved.mT)
                self.products[name].zero_()
            self.sums[names[0]].zero_()

    def factorise(self, names: tuple[str, ...], sizes: Tensor, where: str) -> Tensor:
        """The Cholesky factor of Σ_i G_i, with tenfold damping on both sides until there is one."""
        total, damping = self.sums[names[0]], self.cfg.damping
        factor, failed = torch.linalg.cholesky_ex(total.to(self.walk.device))
        self.counts += torch.tensor([1, int(failed > 0)])
        while failed:
            more, damping = 9 * damping, 10 * damping
            if damping > MOST_DAMPING:
                raise PoolError(f"{where}: the second moments of its inputs are not finite")
            total.diagonal().add_(more * sizes.sum())
            for name in names:
                for size, delta in zip(sizes.tolist(), self.walk.deltas[weight(name)], strict=True):
                    self.products[name].add_(delta, alpha=more * size)
            factor, failed = torch.linalg.cholesky_ex(total.to(self.walk.device))
        return factor

    def results(self, base: tuple[str, ...] = ()) -> Iterator[tuple[str, Tensor]]:
        """Δ of every parameter: means outside the layers, but zeros for what begins with one of `base`."""
        solved, damped = self.counts.tolist()
        self.run.tally["regmean.solved"] += solved
        self.run.tally["regmean.more_damping"] += damped
        yield from self.found.items()

        def outside(leaf: Leaf) -> tuple[str, Tensor]:
            return leaf.name, torch.zeros_like(leaf.base) if leaf.name.startswith(base) else mean(leaf.deltas)

        view = self.walk.view
        yield from replace(view, only=frozenset(view.specs.keys() - self.found.keys())).map(outside, "leaf")


def weight(linear: str) -> str:
    return f"{linear}.weight"


@method(paper=REGMEAN, grain="leaf", uses=("train_images",))
def regmean(view: PoolView, cfg: Regmean, run: Any) -> Iterator[tuple[str, Tensor]]:
    """Regression mean (Jin et al., 2023).

    Per Linear weight of the layers, W = (Σ_i W_i G_i)(Σ_i G_i)⁻¹ minimises Σ_i ‖(W − W_i) X_i‖² over what expert i
    gives that Linear for images of its own task (off-diagonals of G_i = XᵀX/n × shrink apart); written in task
    vectors, Δ = (Σ_i τ_i G_i)(Σ_i G_i)⁻¹. All other parameters, biases among them: mean τ. q, k and v share one Gram
    matrix. `scaling_factor` has no part in the statistics, each expert is walked as it is.

    Layer by layer, so that the Gram matrices of one layer exist at a time: one forward pass over `images` an expert,
    9/16 of a product XᵀX for each distinct input, one of float64 (out × in × in) a weight and expert. Gram matrices
    are float32 products summed in float64, the system is solved by Cholesky in float64. In scratch: hidden states of
    all images (4 · T · images · tokens · width bytes, 315 MB for eight ViT-B/32), the task vectors of a layer, Δ.

    Deviations: damping · mean(diag G_i) · I is added to every G_i, on both sides of the system, so that what is exact
    stays so (one expert is that expert); where float32 has left Σ_i G_i indefinite, ten times as much, counted in the
    record. The code of the figures inverts Σ_i G_i in float32 as it is, and takes whole batches of 32 of shuffled
    images; here exactly `images` are drawn, or all there are. A projection that is merged (the authors' experts) is
    averaged.

    Source: section 3; the figures are FusionBench's.
    """
    walk, tasks = Walk(run, cfg.images), view.tasks
    regression, entered = Regression(walk, run, cfg), None
    for step in run.steps(walk.layers * len(tasks), regression.state, "regmean"):
        layer, number = divmod(step, len(tasks))
        task = tasks[number]
        if layer != entered:
            walk.read(layer)
            if not layer:
                walk.read(STEM)
            entered = layer
        if not layer:
            walk.load_expert(STEM, number)
        walk.load_expert(layer, number)
        with watched(walk.layer(layer), regression.grams):
            for place, hidden in walk.inputs(task, layer):
                walk.hidden[task][place] = walk.through(layer, hidden)
        regression.add(number)
        if number == len(tasks) - 1:
            regression.solve(layer)
    yield from regression.results()


@method(paper=REGMEAN_PLUSPLUS, grain="leaf", uses=("train_images",))
def regmean_plusplus(view: PoolView, cfg: RegmeanPlusplus, run: Any) -> Iterator[tuple[str, Tensor]]:
    """Regression mean through the layers that are merged already (Nguyen et al., 2026).

    As regmean, but images of task i come to layer l through the merged embeddings and the merged layers below l; in
    layer l, expert i's own weights make the inputs of its Linears from there. The merged layers are taken at
    scaling_factor = 1. Two forward passes over `images` an expert; otherwise the cost is regmean's.

    Deviations: those of regmean, and the LayerNorm behind the last layer is averaged as all others are, where the code
    of the figures leaves it as in the base (`post_layernorm=base`).

    Source: algorithm 1; the figures are FusionBench's.
    """
    walk, tasks = Walk(run, cfg.images), view.tasks
    regression, entered = Regression(walk, run, cfg), None
    for step in run.steps(walk.layers * len(tasks), regression.state, "regmean_plusplus"):
        layer, number = divmod(step, len(tasks))
        task = tasks[number]
        if layer != entered:
            if layer:
                walk.load(layer - 1, {n: regression.found[whole] for n, whole in walk.names(layer - 1).items()})
            else:
                walk.read(STEM)
                walk.load(STEM, {name: mean(walk.deltas[name]) for name in walk.names(STEM)})
            walk.read(layer)
            entered = layer
        walk.load_expert(layer, number)
        with watched(walk.layer(layer), regression.grams):
            for place, hidden in walk.inputs(task, layer):
                if layer:
                    hidden = walk.through(layer - 1, hidden)
                walk.hidden[task][place] = hidden
                walk.through(layer, hidden)
        regression.add(number)
        if number == len(tasks) - 1:
            regression.solve(layer)
    yield from regression.results(("post_layernorm.",) if cfg.post_layernorm == "base" else ())
