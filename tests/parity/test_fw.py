"""fw_merging against its definition, differentiated by torch in float64."""

from collections.abc import Iterator

import pytest
import torch
from looking_rules import BASE, USES, Exact, apart, check_goes_on, lent, merged, moved, task_vectors, tiny_models
from references import Models
from torch import Tensor

from clipfuse.errors import ConfigError
from clipfuse.fusion.fw import FwMerging, fw_merging
from clipfuse.testing import TASKS

IMAGES = 5
Vectors = dict[str, Tensor]


@pytest.fixture
def models() -> Models:
    return tiny_models(0.1)


def plus(base: Vectors, delta: Vectors) -> Vectors:
    return {name: base[name].double() + delta[name] for name in base}


def slopes(weights: Vectors, step: int, images: int) -> Vectors:
    """∇L, the mean over tasks of the cross-entropy."""
    tower, data = Exact(weights), lent()
    total = torch.zeros((), dtype=torch.float64)
    for task in TASKS:
        shown = data.images(task, "train")
        rows = shown.rows(step, images)
        logs = tower.logs(task, shown.pixels(rows))
        total = total - logs.gather(1, shown.labels(rows).unsqueeze(1)).mean() / len(TASKS)
    return tower.gradient(total)


def scores(slope: Vectors, vertex: Vectors, score: str) -> Tensor:
    """One for every parameter."""
    products = [(slope[name] * value).sum() for name, value in vertex.items()]
    if score == "inner_product":
        return torch.stack(products)
    lengths = [slope[name].norm() * value.norm() for name, value in vertex.items()]
    return torch.stack([product / length for product, length in zip(products, lengths, strict=True)])


def hard(models: Models, steps: int, score: str, granularity: str, decay: bool) -> Iterator[Vectors]:
    """Δ after each step."""
    base, deltas = models[BASE], task_vectors(models)
    towards = [{name: delta[number] for name, delta in deltas.items()} for number in range(len(TASKS))]
    delta = {name: 0.3 * each.sum(0) for name, each in deltas.items()}
    if score == "cosine":
        towards.append(dict(delta))
    for step in range(steps):
        slope = slopes(plus(base, delta), step, IMAGES)
        table = torch.stack([scores(slope, plus(base, each), score) for each in towards], 1)  # (parameter, pick)
        picks = table.argmin(1) if granularity == "layer" else table.sum(0).argmin().expand(len(table))
        share = 0.2 * (2 / (step + 2) if decay else 1)
        delta = {
            name: value + share * (towards[pick][name] - value)
            for (name, value), pick in zip(delta.items(), picks.tolist(), strict=True)
        }
        yield delta


def without_keys(vectors: Vectors) -> Vectors:
    """Biases of keys change nothing, so that their gradients, and what they point at, are rounding."""
    return {name: value for name, value in vectors.items() if not name.endswith("k_proj.bias")}


@pytest.mark.parametrize(
    ("score", "granularity", "decay"),
    [("inner_product", "task", False), ("inner_product", "layer", True), ("cosine", "layer", False)],
)
def test_hard(models: Models, score: str, granularity: str, decay: bool):
    settings = {"score": score, "granularity": granularity, "decay": decay, "images": IMAGES, "step_size": 0.2}
    found = without_keys(moved(merged(models, "fw_merging", steps=4, **settings), models))
    path = [without_keys(delta) for delta in hard(models, 4, score, granularity, decay)]
    assert apart(found, path[-1]) < 1e-5
    assert apart(path[-2], path[-1]) > 1e-2


def test_cosines_are_added_up_over_the_model(models: Models):
    """Gradients of keys' biases are rounding, but their cosines count: all else must decide here."""
    found = merged(models, "fw_merging", score="cosine", steps=1, init=0.3, images=IMAGES, step_size=1.0)
    delta = {name: 0.3 * each.sum(0) for name, each in task_vectors(models).items()}
    towards = [*({n: each[k] for n, each in task_vectors(models).items()} for k in range(3)), delta]
    slope = slopes(plus(models[BASE], delta), 0, IMAGES)
    vertices = [without_keys(plus(models[BASE], each)) for each in towards]
    sums = torch.stack([scores(slope, each, "cosine").sum() for each in vertices])
    first, second = sums.sort().values[:2].tolist()
    assert second - first > 0.02, "else two biases may turn it"
    assert apart(moved(found, models), towards[int(sums.argmin())]) < 1e-5


def test_it_says_where_it_went(models: Models):
    measured = merged(models, "fw_merging", steps=3, images=IMAGES).recipe["measured"]
    assert sum(count for name, count in measured.items() if name.startswith("fw_merging.towards.")) == 3 * len(
        models[BASE]
    )
    assert sorted(measured.values())[0] == 0 == measured["fw_merging.towards.start"]


def soft(models: Models, steps: int, inner: int, batch: int, lr: float) -> Vectors:
    base, deltas = models[BASE], task_vectors(models)
    delta = {name: torch.zeros_like(each[0]) for name, each in deltas.items()}
    for step in range(steps):
        factors = {name: torch.full((3,), 0.0 if step else 0.3, dtype=torch.float64) for name in base}
        for factor in factors.values():
            factor.requires_grad_()
        adam = torch.optim.Adam(list(factors.values()), lr)

        def going(delta: Vectors = delta, factors: Vectors = factors) -> Vectors:
            return {n: d + torch.einsum("k,k...->...", factors[n], deltas[n] - d) for n, d in delta.items()}

        for number in range(inner):
            now = going()
            slope = slopes(plus(base, {n: d.detach() for n, d in now.items()}), step * inner + number, batch)
            adam.zero_grad()
            torch.stack([(slope[name] * now[name]).sum() for name in now]).sum().backward()
            adam.step()
        delta = {name: each.detach() for name, each in going().items()}
    return delta


def test_soft(models: Models):
    settings = {"mode": "soft", "steps": 2, "inner_steps": 3, "batch": 4, "lr": 0.02}
    found = without_keys(moved(merged(models, "fw_merging", **settings), models))
    wanted = without_keys(soft(models, 2, 3, 4, 0.02))
    assert apart(found, wanted) < 1e-3
    assert apart(wanted, without_keys({n: 0.3 * each.sum(0) for n, each in task_vectors(models).items()})) > 0.05


@pytest.mark.parametrize(
    ("settings", "stops"),
    [
        ({"steps": 2, "images": 5, "granularity": "layer"}, (2, 8)),  # two passes a task and step
        ({"mode": "soft", "steps": 2, "inner_steps": 2, "batch": 3, "lr": 0.05}, (5, 9)),
    ],
)
def test_it_goes_on_where_it_was_interrupted(monkeypatch: pytest.MonkeyPatch, settings: dict, stops: tuple[int, ...]):
    monkeypatch.setattr("clipfuse.stats.gradients.MOST", 3)
    check_goes_on(monkeypatch, fw_merging, FwMerging(**settings), USES, stops)


def test_gradients_do_not_depend_on_how_images_are_cut(models: Models, monkeypatch: pytest.MonkeyPatch):
    whole = moved(merged(models, "fw_merging", steps=2, images=IMAGES), models)
    monkeypatch.setattr("clipfuse.stats.gradients.MOST", 2)
    assert apart(moved(merged(models, "fw_merging", steps=2, images=IMAGES), models), whole) < 1e-6


@pytest.mark.parametrize(
    "settings", [{"mode": "both"}, {"steps": 0}, {"step_size": 2.0}, {"images": 0}, {"score": "sine"}, {"lr": 0.0}]
)
def test_bad_settings_are_named(settings: dict):
    with pytest.raises(ConfigError, match=f"method.{next(iter(settings))}"):
        merged(tiny_models(), "fw_merging", **settings)
