"""Concrete subspace learning: one mask for all task vectors, learned by entropy on unlabelled images."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.fusion.adam import Adam
from clipfuse.fusion.blocks import total, weighted_total
from clipfuse.fusion.coefficients import ALL, COEFFICIENTS, Coefficients
from clipfuse.fusion.coefficients_picture import coefficients_svg
from clipfuse.fusion.entropy import EntropyConfig, entropy_uses, minimise_entropy
from clipfuse.fusion.forward import Forward
from clipfuse.fusion.mixture import Mixture
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import method
from clipfuse.fusion.relaxed import draw_relaxed, mean_of_relaxed
from clipfuse.fusion.streams import Run
from clipfuse.pool import Leaf, PoolView
from clipfuse.shapes import Float

CONCRETE = Paper(
    "Concrete Subspace Learning based Interference Elimination for Multi-task Model Fusion",
    "Tang, Anke and Shen, Li and Luo, Yong and Ding, Liang and Hu, Han and Du, Bo and Tao, Dacheng",
    2023,
    "2312.06173",
    "arXiv",
)


class Concrete(EntropyConfig):
    """Δ = coefficient · Σ_k τ_k ⊙ m/mean(m) per tensor, m ~ RelaxedBernoulli(logits, temperature), logits learned."""

    steps: Annotated[int, Field(ge=1, examples=[3])] = 2000
    """Steps of Adam on the logits; published with 1000 where AdaMerging follows."""
    coefficient: float = 0.3
    """λ while the mask is learned, dimensionless; where AdaMerging follows, it begins there."""
    temperature: Annotated[float, Field(ge=0.02)] = 0.5
    """Of the relaxation, dimensionless: small ones draw masks near 0 and 1."""
    initial_logits: Annotated[float, Field(ge=-10, le=10)] = 0.0
    """Every logit to begin with."""
    mask: Literal["mean", "sample"] = "mean"
    """The final mask: the distribution's mean, or one seeded draw from it."""
    then: Literal["none", "task", "layer"] = "none"
    """AdaMerging of the masked task vectors, with a coefficient for each expert, or for each expert and parameter."""
    ada_steps: Annotated[int, Field(ge=1, examples=[2])] = 1000
    """Its steps."""


@method(paper=CONCRETE, grain="leaf", uses=entropy_uses)
def concrete(view: PoolView, cfg: Concrete, run: Run) -> Iterator[tuple[str, Tensor]]:
    """Concrete task arithmetic and Concrete AdaMerging (Tang et al., 2023): a mask that all task vectors share.

    m = σ((logits + L)/temperature) with logistic noise L = log u − log(1−u), an entry for each weight, drawn anew every
    step; each parameter tensor's m is divided by its mean. Adam on the logits, from `initial_logits`, on Σ_tasks of the
    mean entropy of a batch of each task's images at θ0 + coefficient · Σ_k τ_k ⊙ m/mean(m).

    The final mask is E[m], its own mean, found numerically; or (`mask=sample`, published) one more draw. With
    `then`, the coefficients of τ_k ⊙ m/mean(m) are learned by AdaMerging with the final mask as it is; it leaves
    `coefficients.json`, of masked task vectors, and a picture of it. `entropy.csv` is the course of the entropy. Early
    stopping looks at the mask that is drawn for its step.

    A step costs the forward and backward pass of its images, and some ten passes over arrays of one model's size. They
    lie in scratch, five such arrays; memory: a tower, its gradient and the activations of one batch.

    Deviations: E[m] by default, which needs no seed, where the figures were made with a draw. u has 16 bits. Published
    Concrete AdaMerging learns its mask at coefficients that one step of Adam (lr 1) from `coefficient` gives, every
    step anew; here at `coefficient` itself. The published figures are of the test images (`images=test`); the default
    is val.

    Source: sections 3.3 and 3.4, algorithm 1, and the code of the figures, FusionBench's concrete_subspace.
    """
    forward = Forward(run)
    shared = SharedMask(view, cfg, run, forward)
    course = minimise_entropy(
        run, forward, cfg, Adam(shared.logits, cfg.lr, shared.moments), shared.spread, shared.pull_back, "concrete"
    )
    run.files["entropy.csv"] = course.to_csv(run.data.tasks)
    run.tally["concrete.steps"] += course.done
    forward.each(shared.settle, shared.names)
    if cfg.then == "none":
        for name in shared.names:
            yield name, (shared.sums[name] * shared.masks[name]).mul_(cfg.coefficient)
        return
    masked = replace(view, edits=(*view.edits, shared.edit), progress=None)
    coefficients, place = adapt(masked, cfg, run, forward), {name: row for row, name in enumerate(view.specs)}

    def mix(leaf: Leaf) -> tuple[str, Tensor]:
        return leaf.name, weighted_total(leaf.deltas, coefficients[place[leaf.name]].tolist())

    yield from masked.map(mix, "leaf")


@dataclass
class SharedMask:
    """Logits of one mask, and the tower at the sum of task vectors behind draws from it."""

    view: PoolView
    cfg: Concrete
    run: Run
    forward: Forward
    sums: dict[str, Tensor] = field(init=False)
    """Σ_k τ_k, through the edits."""
    masks: dict[str, Tensor] = field(init=False)
    """m as last drawn; once settled, the final m/mean(m)."""
    logits: dict[str, Tensor] = field(init=False)
    moments: dict[str, Tensor] = field(init=False)
    """Adam's."""

    def __post_init__(self) -> None:
        specs = self.view.specs
        self.names = list(specs)
        kinds = ("sum", "mask", "logits", "mean", "square")
        room = self.forward.room(
            {f"{kind} {name}": TensorSpec(spec.shape, torch.float32) for kind in kinds for name, spec in specs.items()}
        )
        self.sums, self.masks, self.logits = ({name: room[f"{kind} {name}"] for name in specs} for kind in kinds[:3])
        self.moments = {f"{kind} {name}": room[f"{kind} {name}"] for kind in kinds[3:] for name in specs}
        for logits in self.logits.values():
            logits.fill_(self.cfg.initial_logits)

        def add_up(leaf: Leaf) -> None:
            flat = self.sums[leaf.name].view(-1)
            flat[leaf.start : leaf.start + leaf.numel] = total(leaf.deltas).flatten()

        for _ in self.run.map(add_up, "element"):
            pass

    def spread(self, step: int) -> None:
        """Draw a step's mask; write θ0 + coefficient · Σ_k τ_k ⊙ m/mean(m) into the tower."""
        self.forward.load_base()

        def write(name: str) -> None:
            self.draw(name, step)
            factor = self.cfg.coefficient * inverse_mean(self.masks[name])
            self.forward.parameters[name].detach().addcmul_(self.sums[name], self.masks[name], value=factor)

        self.forward.each(write, self.names)

    def pull_back(self) -> Mapping[str, Tensor]:
        """∂L/∂logits from the tower's gradients G, in their place.

        With S = coefficient · Σ_k τ_k, n entries and r = mean(m): ∂L/∂m_j = G_j S_j / r − Σ_i G_i S_i m_i / (n r²), and
        ∂m/∂logit = m(1−m)/temperature.
        """
        slopes: dict[str, Tensor] = {}

        def work(name: str) -> None:
            slope, mask = self.forward.parameters[name].grad, self.masks[name]
            assert slope is not None
            inverse = inverse_mean(mask)
            slope.mul_(self.sums[name])
            through_mean = float((slope * mask).sum(dtype=torch.float64)) / mask.numel() * inverse
            slope.sub_(through_mean).mul_(torch.addcmul(mask, mask, mask, value=-1))
            slopes[name] = slope.mul_(self.cfg.coefficient * inverse / self.cfg.temperature)

        self.forward.each(work, self.names)
        return slopes

    def slices(self, name: str) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Start, mask and logits of every slice of a parameter."""
        arrays = (array.view(-1).split(self.view.slice) for array in (self.masks[name], self.logits[name]))
        for number, (mask, logits) in enumerate(zip(*arrays, strict=True)):
            yield number * self.view.slice, mask, logits

    def draw(self, name: str, step: int) -> None:
        """A parameter's mask of a step; it depends on the seed, the name, the step and the logits."""
        parts = (self.run.seed, "concrete", step, name)
        for start, mask, logits in self.slices(name):
            draw_relaxed(parts, start, logits, self.cfg.temperature, out=mask)

    def settle(self, name: str) -> None:
        """The final mask of a parameter, divided by its mean."""
        if self.cfg.mask == "sample":
            self.draw(name, self.cfg.steps)
        else:
            for _, mask, logits in self.slices(name):
                mask.copy_(mean_of_relaxed(logits, self.cfg.temperature))
        self.masks[name].mul_(inverse_mean(self.masks[name]))

    def edit(self, leaf: Leaf) -> Float[Tensor, "task *shape"]:
        """τ_k ⊙ m/mean(m), once the mask is settled."""
        return leaf.deltas * Mixture.part(self.masks[leaf.name], leaf).view(leaf.deltas.shape[1:])


def inverse_mean(mask: Float[Tensor, "*shape"]) -> float:
    """1/mean(m), 0 where that is 0/0."""
    mean = float(mask.sum(dtype=torch.float64)) / max(mask.numel(), 1)
    return 1 / mean if mean else 0.0


def adapt(view: PoolView, cfg: Concrete, run: Run, forward: Forward) -> Float[Tensor, "parameter task"]:
    """AdaMerging's coefficients of masked task vectors, a row for each parameter; left as files."""
    mixture = Mixture(view, forward)
    names = mixture.names if cfg.then == "layer" else [ALL]
    learned = torch.full((len(names), len(view.tasks)), cfg.coefficient)

    def pull_back() -> dict[str, Tensor]:
        slope = mixture.pull_back()
        return {"coefficients": slope if cfg.then == "layer" else slope.sum(0, keepdim=True)}

    def spread(step: int) -> None:
        mixture.spread(learned.expand(len(mixture.names), -1))

    optimiser, title = Adam({"coefficients": learned}, cfg.lr), "concrete adamerging"
    course = minimise_entropy(run, forward, cfg, optimiser, spread, pull_back, title, cfg.ada_steps)
    rows = {name: tuple(row) for name, row in zip(names, learned.tolist(), strict=True)}
    grain: Literal["layer", "task"] = "layer" if cfg.then == "layer" else "task"
    found = Coefficients(view.tasks, rows, grain, "concrete", entropy_uses(cfg), tuple(run.data.ledger), run.seed)
    run.files[COEFFICIENTS] = found.to_text()
    run.files["coefficients.svg"] = coefficients_svg(found, f"Concrete AdaMerging, {grain}-wise, {course.done} steps")
    run.files["entropy_adamerging.csv"] = course.to_csv(run.data.tasks)
    run.tally["concrete.adamerging_steps"] += course.done
    return learned.expand(len(mixture.names), -1)
