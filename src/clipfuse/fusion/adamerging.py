"""AdaMerging: coefficients of task vectors, learned by entropy on unlabelled images."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from clipfuse.errors import ConfigError
from clipfuse.fusion.adam import Adam
from clipfuse.fusion.blocks import weighted_total
from clipfuse.fusion.coefficients import ALL, COEFFICIENTS, Coefficients, check_fits, read_coefficients
from clipfuse.fusion.coefficients_picture import coefficients_svg
from clipfuse.fusion.entropy import EntropyConfig, entropy_uses, minimise_entropy
from clipfuse.fusion.forward import Forward
from clipfuse.fusion.mixture import Mixture
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import Uses, method
from clipfuse.fusion.streams import Run
from clipfuse.pool import Leaf, PoolView
from clipfuse.shapes import Float

ADAMERGING = Paper(
    "AdaMerging: Adaptive Model Merging for Multi-Task Learning",
    "Yang, Enneng and Wang, Zhenyi and Shen, Li and Liu, Shiwei and Guo, Guibing and Wang, Xingwei and Tao, Dacheng",
    2024,
    "2310.02575",
    "ICLR",
)


class Adamerging(EntropyConfig):
    """Δ = Σ_k λ_k^(l) τ_k^(l), λ = argmin Σ_tasks mean entropy(f(x; θ0 + Δ))."""

    grain: Literal["layer", "task"] = "layer"
    """A coefficient for each expert and parameter, or for each expert."""
    init: float = 0.3
    """Every coefficient to begin with."""
    weights: str | None = None
    """Learned coefficients to apply again, without images: a `coefficients.json`, or the merge's folder."""

    @cached_property
    def found(self) -> Coefficients | None:
        """What `weights` names. Raises ConfigError if it cannot be read."""
        return None if self.weights is None else read_coefficients(self.weights)

    @property
    def data_seen(self) -> Sequence[Mapping[str, Any]]:
        """The ledger of the images that given coefficients were learned on."""
        return () if self.found is None else self.found.data


def uses(cfg: Adamerging) -> tuple[Uses, ...]:
    return entropy_uses(cfg) if cfg.found is None else cfg.found.uses


def given(view: PoolView, cfg: Adamerging) -> Float[Tensor, "parameter task"] | None:
    """Coefficients that are given, checked against the pool, a row for each parameter."""
    found = cfg.found
    if found is None:
        return None
    if found.method != "adamerging":
        raise ConfigError(f"{cfg.weights}: its coefficients are {found.method}'s, of task vectors that it changes")
    names = list(view.specs)
    check_fits(found, view.tasks, names, str(cfg.weights))
    return found.matrix(view.tasks, names)


@method(
    paper=ADAMERGING,
    grain="leaf",
    uses=uses,
    looks=lambda cfg: cfg.weights is None,
    prepare=given,
)
def adamerging(
    view: PoolView, cfg: Adamerging, run: Run, known: Float[Tensor, "parameter task"] | None
) -> Iterator[tuple[str, Tensor]]:
    """AdaMerging (Yang et al., 2024): merging coefficients that make predictions on unlabelled images certain.

    From λ = init, Adam on Σ_tasks of the mean entropy of a batch of each task's images; a coefficient for each expert
    and parameter tensor (`grain=layer`) or for each expert. Behind the edit `ties` it is the paper's AdaMerging++.

    As θ is linear in λ, ∂L/∂λ = ⟨∂L/∂θ, τ⟩ for each tensor: nothing is back-propagated through the merge, and a step
    costs the forward and backward pass of its images and two passes over the task vectors, which stay in their files
    (behind edits, in a temporary one). Memory: a tower, its gradient and the activations of one batch; on a GPU the
    task vectors as well.

    It leaves `coefficients.json` (which `weights=` applies again, without images), a picture of it, and the course of
    the entropy, `entropy.csv`.

    Low entropy is not accuracy: where the base is badly calibrated, coefficients grow until predictions are certain
    and wrong. `early_stop=accuracy` stops by val labels, and says so.

    Deviations: λ is not clamped, as in the figures' code (the paper's text says nothing of it). The published figures
    are of the test images (`images=test`); the default is val.

    Source: sections 3.2.1 and 3.2.2.
    """
    if known is None:
        coefficients = learn(view, cfg, run)
    else:
        coefficients, run.files[COEFFICIENTS] = known, read_coefficients(str(cfg.weights)).to_text()
    place = {name: number for number, name in enumerate(view.specs)}

    def mix(leaf: Leaf) -> tuple[str, Tensor]:
        return leaf.name, weighted_total(leaf.deltas, coefficients[place[leaf.name]].tolist())

    yield from run.map(mix, "leaf")


def learn(view: PoolView, cfg: Adamerging, run: Run) -> Float[Tensor, "parameter task"]:
    """Coefficients of every parameter; what was learned is left as files."""
    forward = Forward(run)
    mixture = Mixture(view, forward)
    names = mixture.names if cfg.grain == "layer" else [ALL]
    learned = torch.full((len(names), len(view.tasks)), cfg.init)
    optimiser = Adam({"coefficients": learned}, cfg.lr)

    def wide() -> Tensor:
        return learned.expand(len(mixture.names), -1)

    def pull_back() -> dict[str, Tensor]:
        slope = mixture.pull_back()
        return {"coefficients": slope if cfg.grain == "layer" else slope.sum(0, keepdim=True)}

    course = minimise_entropy(
        run, forward, cfg, optimiser, lambda step: mixture.spread(wide()), pull_back, "adamerging"
    )
    rows = {name: tuple(row) for name, row in zip(names, learned.tolist(), strict=True)}
    found = Coefficients(
        view.tasks, rows, cfg.grain, "adamerging", entropy_uses(cfg), tuple(run.data.ledger), run.seed, run.edits
    )
    run.files[COEFFICIENTS] = found.to_text()
    run.files["coefficients.svg"] = coefficients_svg(found, f"AdaMerging, {cfg.grain}-wise, {course.done} steps")
    run.files["entropy.csv"] = course.to_csv(run.data.tasks)
    run.tally["adamerging.steps"] += course.done
    return wide()
