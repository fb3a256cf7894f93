"""fisher_merging against its definition, an image and a class at a time in float64."""

from collections.abc import Callable

import pytest
import torch
from looking_rules import BASE, Exact, apart, check_goes_on, lent, merged, moved, task_vectors, tiny_models
from references import Models
from torch import Tensor

from clipfuse.errors import ConfigError
from clipfuse.fusion.fisher import FisherMerging, fisher_merging, sample
from clipfuse.stats import gradients
from clipfuse.testing import TASKS

FLOOR = 1e-3
"""Large enough that all entries matter, small enough that F does."""


@pytest.fixture
def models() -> Models:
    return tiny_models()


Squares = Callable[[Exact, str, Tensor, list[int]], list[dict[str, Tensor]]]
"""Gradients whose squares F is the sum of."""


def by_class(tower: Exact, task: str, pixels: Tensor, rows: list[int]) -> list[dict[str, Tensor]]:
    logs = tower.logs(task, pixels)
    return [tower.gradient(log * (log.detach() / 2).exp()) for log in logs.flatten()]


def by_sample(tower: Exact, task: str, pixels: Tensor, rows: list[int]) -> list[dict[str, Tensor]]:
    logs = tower.logs(task, pixels)
    return [tower.gradient(log[label]) for log, label in zip(logs, sample(logs, 0, task, rows), strict=True)]


def by_batch(tower: Exact, task: str, pixels: Tensor, rows: list[int]) -> list[dict[str, Tensor]]:
    logs = tower.logs(task, pixels)
    return [tower.gradient((log * (log.detach() / 2).exp()).sum()) for log in logs.split(4)]


def reference(models: Models, squares: Squares, images: int, floor: float = FLOOR) -> dict[str, Tensor]:
    """Δ."""
    deltas, data = task_vectors(models), lent()
    weighted, weights = ({name: torch.zeros_like(delta[0]) for name, delta in deltas.items()} for _ in range(2))
    for number, task in enumerate(TASKS):
        shown = data.images(task, "train")
        rows = shown.choice(images)
        found = squares(Exact(models[task]), task, shown.pixels(rows), rows)
        fisher = {name: torch.stack([each[name].square() for each in found]).sum(0) / len(rows) for name in deltas}
        share = 1 / (sum(float(f.square().sum()) for f in fisher.values()) ** 0.5 + floor)
        for name, own in fisher.items():
            weights[name] += share * (own + floor)
            weighted[name] += share * (own + floor) * deltas[name][number]
    return {name: weighted[name] / weights[name] for name in deltas}


@pytest.mark.parametrize(
    ("estimator", "squares"), [("exact", by_class), ("sampled", by_sample), ("batch_sum", by_batch)]
)
def test_every_parameter(models: Models, estimator: str, squares: Squares):
    found = merged(models, "fisher_merging", estimator=estimator, images=6, batch=4, floor=FLOOR)
    wanted = reference(models, squares, 6)
    assert apart(moved(found, models), wanted) < 2e-5
    mean = {name: delta.mean(0) for name, delta in task_vectors(models).items()}
    assert apart(wanted, mean) > 0.05, "weights that are all alike would pass"


def test_a_floor_beside_the_norms(models: Models):
    """It moderates c_i, too."""
    found = moved(merged(models, "fisher_merging", estimator="exact", images=2, floor=1.0), models)
    assert apart(found, reference(models, by_class, 2, 1.0)) < 1e-5
    assert apart(found, {name: delta.mean(0) for name, delta in task_vectors(models).items()}) > 0.02


def test_one_expert_is_that_expert(models: Models):
    alone = {BASE: models[BASE], "signs": models["signs"]}
    found = moved(merged(alone, "fisher_merging", images=4), models)
    assert apart(found, {name: delta[1] for name, delta in task_vectors(models).items()}) < 1e-5


def test_equal_information_gives_the_mean(models: Models):
    """A floor that drowns every F."""
    found = moved(merged(models, "fisher_merging", images=4, floor=1e9), models)
    assert apart(found, {name: delta.mean(0) for name, delta in task_vectors(models).items()}) < 1e-5


def test_images_are_not_counted_twice_nor_batches_seen(models: Models):
    """A mean over images: how they are cut into batches changes rounding only; all there are is the most there is."""
    found = [
        moved(merged(models, "fisher_merging", images=images, batch=batch, floor=FLOOR), models)
        for images, batch in ((12, 5), (12, 12), (99, 32))
    ]
    assert max(apart(other, found[0]) for other in found[1:]) < 1e-5


def test_a_batch_is_more_than_a_pass_may_take(models: Models, monkeypatch: pytest.MonkeyPatch):
    settings = {"estimator": "batch_sum", "images": 6, "batch": 4, "floor": FLOOR}
    whole = moved(merged(models, "fisher_merging", **settings), models)
    monkeypatch.setattr(gradients, "MOST", 3)
    assert 0 < apart(moved(merged(models, "fisher_merging", **settings), models), whole) < 1e-5


def test_labels_are_sampled_from_the_predictions():
    """Image by image: neither the batch nor the order of images matters, the run's seed and the task do."""
    odds = torch.tensor([0.5, 0.0, 0.3, 0.2])
    rows = list(range(4000))
    labels = sample(odds.log().expand(4000, 4), 0, "signs", rows)
    assert (labels.bincount(minlength=4) / 4000 - odds).abs().max() < 0.03
    assert torch.equal(sample(odds.log().expand(3, 4), 0, "signs", [7, 3999, 5]), labels[[7, 3999, 5]])
    assert not torch.equal(sample(odds.log().expand(4000, 4), 1, "signs", rows), labels)
    assert not torch.equal(sample(odds.log().expand(4000, 4), 0, "roads", rows), labels)


@pytest.mark.parametrize("estimator", ["sampled", "batch_sum"])
def test_it_goes_on_where_it_was_interrupted(monkeypatch: pytest.MonkeyPatch, estimator: str):
    cfg = FisherMerging.model_validate({"images": 8, "batch": 3, "estimator": estimator})  # three steps an expert
    check_goes_on(monkeypatch, fisher_merging, cfg, ("train_images",), stops=(2, 8))


def test_labels_are_not_looked_at(models: Models):
    recipe = merged(models, "fisher_merging", images=3).recipe
    assert recipe["uses"] == ["train_images"]
    assert [(row["images"], row["labels"]) for row in recipe["data"]] == [(3, False)] * 3


@pytest.mark.parametrize("settings", [{"images": 0}, {"floor": 0.0}, {"estimator": "empirical"}, {"batch": 0}])
def test_bad_settings_are_named(settings: dict):
    with pytest.raises(ConfigError, match=f"method.{next(iter(settings))}"):
        merged(tiny_models(), "fisher_merging", **settings)
