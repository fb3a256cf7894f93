"""AdaRank: which singular triplets of each task vector are merged, learned by entropy on unlabelled images."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.fusion.adam import Adam
from clipfuse.fusion.blocks import mean
from clipfuse.fusion.coefficients import COEFFICIENTS, Coefficients
from clipfuse.fusion.coefficients_picture import coefficients_svg
from clipfuse.fusion.entropy import EntropyConfig, entropy_uses, minimise_entropy
from clipfuse.fusion.forward import Forward
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import Shape, method
from clipfuse.fusion.streams import Run
from clipfuse.pool import Leaf, PoolView
from clipfuse.shapes import Float, Int
from clipfuse.stats.spectra import svd

ADARANK = Paper(
    "AdaRank: Adaptive Rank Pruning for Enhanced Model Merging",
    "Lee, Chanhyuk and Choi, Jiho and Lee, Chanryeol and Kim, Donggyun and Hong, Seunghoon",
    2026,
    "2503.22178",
    "ICLR",
)

STARTS = {"base": (1.0, 0.3), "mean": (0.16, 2.3)}
"""Published rank_fraction and init for eight tasks, by `around`."""
MARGIN, TEMPERATURE = 0.1, 10.0
"""Logits begin this far above or below 0; B's gradient reaches them as that of σ(logit / TEMPERATURE)."""


class Adarank(EntropyConfig):
    """Δ = μ + Σ_k λ_k U_k diag(B_k σ_k) V_kᵀ per matrix, U_k diag(σ_k) V_kᵀ = τ_k − μ; B_k in {0, 1}, λ_k learned."""

    steps: Annotated[int, Field(ge=1, examples=[3])] = 10_000
    """Steps of Adam; it takes about 0.1/lr of them before a triplet changes sides."""
    around: Literal["base", "mean"] = "base"
    """μ: nothing, as in task arithmetic, or the mean of the task vectors, as in CART."""
    rank_fraction: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of a matrix's triplets, the largest, that are merged to begin with; null is 1, or .16 around the mean."""
    init: float | None = None
    """Every λ to begin with; null is .3, or 2.3 around the mean (published for eight tasks; .05 and 2.4 for twenty)."""
    learn_coefficients: bool = True
    """Learn a λ for each expert and parameter, too."""


@method(paper=ADARANK, grain="leaf", uses=entropy_uses)
def adarank(view: PoolView, cfg: Adarank, run: Run) -> Iterator[tuple[str, Tensor]]:
    """AdaRank (Lee et al., 2026): singular triplets of task vectors stay where that makes predictions certain.

    Of every 2-D weight of the encoder's layers, τ_k − μ is decomposed; B_kj = [logit_kj > 0] says whether its j-th
    triplet is merged. Adam, on logits and λ, on Σ_tasks of the mean entropy of a batch of each task's images; with
    c_kj = σ_kj u_kjᵀ (∂L/∂θ) v_kj, ∂L/∂λ_k = Σ_j B_kj c_kj, and ∂L/∂B_kj = λ_k c_kj goes straight through the threshold
    to σ(logit/10). All other parameters: μ + Σ_k λ_k (τ_k − μ).

    It leaves `ranks.csv`, how many triplets of each matrix and expert are merged, `entropy.csv`, and, of λ,
    `coefficients.json` (of pruned task vectors) and a picture of it.

    A decomposition for each expert and matrix; a step costs the forward and backward pass of its images and, of each
    matrix and expert, 2 · rows · columns · (r + merged triplets) multiplications and additions. The triplets lie in
    scratch, 1½ times the experts' size; memory: a tower, its gradient and the activations of one batch.

    Deviations: the query, key and value weights of a layer are decomposed each, where the published code stacks them
    in one matrix with one λ. That code looks at test accuracy every 500 steps and keeps track of the best; here the
    last step counts, or `early_stop` decides. Whether the paper's tables are of the best or of the last step could not
    be verified. The published figures are of the test images (`images=test`); the default is val.

    Source: the paper's method section, and the authors' code, vision/src/models/merge_vit/adaptive.py and its configs.
    """
    forward = Forward(run)
    triplets = Triplets(view, cfg, run, forward)
    learned = {f"logits {name}": value for name, value in triplets.logits.items()}
    learned |= {"coefficients": triplets.coefficients} if cfg.learn_coefficients else {}
    course = minimise_entropy(run, forward, cfg, Adam(learned, cfg.lr), triplets.spread, triplets.pull_back, "adarank")
    run.tally["adarank.steps"] += course.done
    run.tally["adarank.merged"] += sum(int((value > 0).sum()) for value in triplets.logits.values())
    run.tally["adarank.triplets"] += sum(value.numel() for value in triplets.logits.values())
    run.files["entropy.csv"] = course.to_csv(run.data.tasks)
    run.files["ranks.csv"] = triplets.to_csv()
    if cfg.learn_coefficients:
        rows = zip(triplets.names, map(tuple, triplets.coefficients.tolist()), strict=True)
        data = tuple(run.data.ledger)
        found = Coefficients(view.tasks, dict(rows), "layer", "adarank", entropy_uses(cfg), data, run.seed)
        run.files[COEFFICIENTS] = found.to_text()
        run.files["coefficients.svg"] = coefficients_svg(found, f"AdaRank, {course.done} steps")
    for name, spec in view.specs.items():
        delta = torch.zeros(spec.shape, device=forward.data.device)
        triplets.add(name, delta)
        yield name, delta


def is_decomposed(name: str, shape: Shape) -> bool:
    """Whether it is a 2-D weight of the encoder's layers."""
    return name.startswith("encoder.layers.") and len(shape) == 2


@dataclass
class Triplets:
    """Singular triplets of every expert and matrix, which of them are merged, and the tower at their sum."""

    view: PoolView
    cfg: Adarank
    run: Run
    forward: Forward
    logits: dict[str, Float[Tensor, "task rank"]] = field(default_factory=dict)
    """Of each matrix; a triplet is merged where its logit is above 0."""

    def __post_init__(self) -> None:
        specs, experts = self.view.specs, len(self.view.tasks)
        self.names = list(specs)
        self.place = {name: row for row, name in enumerate(self.names)}
        fraction, init = STARTS[self.cfg.around]
        fraction, init = self.cfg.rank_fraction or fraction, init if self.cfg.init is None else self.cfg.init
        self.coefficients = torch.full((len(specs), experts), init)
        shapes: dict[str, Shape] = {}
        for name, spec in specs.items():
            if self.cfg.around == "mean":
                shapes[f"mean {name}"] = spec.shape
            if not is_decomposed(name, spec.shape):
                shapes[f"rest {name}"] = (experts, *spec.shape)
                continue
            rows, columns = spec.shape
            full = min(rows, columns)
            shapes |= {f"u {name}": (experts, rows, full), f"s {name}": (experts, full)}
            shapes |= {f"vh {name}": (experts, full, columns)}
            self.logits[name] = torch.full((experts, full), MARGIN)
            self.logits[name][:, int(round(fraction * full, 9)) :] = -MARGIN
        self.parts = self.forward.room({key: TensorSpec(shape, torch.float32) for key, shape in shapes.items()})
        for leaf_tally in self.run.map(self.decompose, "leaf"):
            self.run.tally.update(leaf_tally)

    def decompose(self, leaf: Leaf) -> Mapping[str, int]:
        """Fill a parameter's parts."""
        deltas, name = leaf.deltas, leaf.name
        if self.cfg.around == "mean":
            centre = mean(deltas)
            self.parts[f"mean {name}"].copy_(centre)
            deltas = deltas - centre
        if name not in self.logits:
            self.parts[f"rest {name}"].copy_(deltas)
            return leaf.tally
        for row, delta in enumerate(deltas):
            for kind, found in zip(("u", "s", "vh"), svd(delta, leaf.tally), strict=True):
                self.parts[f"{kind} {name}"][row].copy_(found)
        return leaf.tally

    def merged(self, name: str, row: int) -> Int[Tensor, "merged"]:
        """Numbers of an expert's triplets that are merged."""
        return (self.logits[name][row] > 0).nonzero().flatten().to(self.parts[f"s {name}"].device)

    def add(self, name: str, into: Float[Tensor, "*shape"]) -> None:
        """Add a parameter's Δ."""
        parts = self.parts
        if self.cfg.around == "mean":
            into.add_(parts[f"mean {name}"])
        for row, factor in enumerate(self.coefficients[self.place[name]].tolist()):
            if name not in self.logits:
                into.add_(parts[f"rest {name}"][row], alpha=factor)
                continue
            u, s, vh = (parts[f"{kind} {name}"][row] for kind in ("u", "s", "vh"))
            on = self.merged(name, row)
            into.addmm_(u[:, on] * s[on], vh[on], alpha=factor)

    def spread(self, step: int) -> None:
        """Write θ0 + Δ into the tower."""
        self.forward.load_base()
        self.forward.each(lambda name: self.add(name, self.forward.parameters[name].detach()), self.names)

    def pull_back(self) -> dict[str, Tensor]:
        """The gradients by λ and by the logits, from the tower's."""
        by_coefficient = torch.zeros_like(self.coefficients)
        by_logits = {name: torch.zeros_like(value) for name, value in self.logits.items()}

        def work(name: str) -> None:
            slope, parts = self.forward.parameters[name].grad, self.parts
            assert slope is not None
            for row, factor in enumerate(self.coefficients[self.place[name]].tolist()):
                if name not in self.logits:
                    product = (slope * parts[f"rest {name}"][row]).sum(dtype=torch.float64)
                else:
                    u, s, vh = (parts[f"{kind} {name}"][row] for kind in ("u", "s", "vh"))
                    along = s * ((u.T @ slope) * vh).sum(1)
                    product = along[self.merged(name, row)].sum(dtype=torch.float64)
                    soft = (self.logits[name][row] / TEMPERATURE).sigmoid()
                    by_logits[name][row] = along.cpu() * soft * (1 - soft) * (factor / TEMPERATURE)
                by_coefficient[self.place[name], row] = product.item()

        self.forward.each(work, self.names)
        slopes = {f"logits {name}": value for name, value in by_logits.items()}
        return slopes | {"coefficients": by_coefficient}

    def to_csv(self) -> str:
        """A line a matrix: its triplets, and how many of each expert's are merged."""
        lines = [",".join(["parameter", "triplets", *self.view.tasks])]
        for name, logits in self.logits.items():
            lines.append(",".join(map(str, [name, logits.shape[1], *(logits > 0).sum(1).tolist()])))
        return "\n".join(lines) + "\n"
