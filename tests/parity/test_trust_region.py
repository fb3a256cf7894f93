"""trust_region against its definition, an image at a time in float64."""

from importlib import import_module

import pytest
import torch
from looking_rules import BASE, USES, Exact, apart, check_goes_on, lent, merged, moved, task_vectors, tiny_models
from references import Models
from torch import Tensor

import clipfuse
from clipfuse.errors import ConfigError, PoolError
from clipfuse.fusion.trust_region import TrustRegion, smallest, trust_region
from clipfuse.testing import TASKS

IMAGES = 5


@pytest.fixture
def models() -> Models:
    return tiny_models()


@pytest.fixture
def slopes(models: Models) -> list[dict[str, Tensor]]:
    """mean_x |∂ℓ_i(x)/∂θ at θ0| of every task."""
    tower, data, found = Exact(models[BASE]), lent(), []
    for task in TASKS:
        images = data.images(task, "train")
        rows = images.choice(IMAGES)
        logs = tower.logs(task, images.pixels(rows))
        single = [tower.gradient(-log[label]) for log, label in zip(logs, images.labels(rows), strict=True)]
        found.append({name: torch.stack([each[name].abs() for each in single]).mean(0) for name in models[BASE]})
    return found


def conflicts(slopes: list[dict[str, Tensor]], deltas: dict[str, Tensor]) -> dict[str, Tensor]:
    pairs = [(i, k) for i in range(len(slopes)) for k in range(len(slopes)) if i != k]
    terms = {name: [slopes[i][name] * delta[k].abs() for i, k in pairs] for name, delta in deltas.items()}
    return {name: torch.stack(each).sum(0) for name, each in terms.items()}


def masked(deltas: dict[str, Tensor], omega: dict[str, Tensor], quantile: float) -> dict[str, Tensor]:
    values = torch.cat([each.flatten() for each in omega.values()]).sort().values
    limit = values[int(quantile * len(values))]
    return {name: delta.sum(0) * (omega[name] < limit) for name, delta in deltas.items()}


def differing(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> int:
    """Entries that only one of them keeps."""
    return sum(int(((found[name] != 0) != (wanted[name] != 0)).sum()) for name in wanted)


@pytest.mark.parametrize("quantile", [0.99, 0.6])
def test_every_parameter(models: Models, slopes: list[dict[str, Tensor]], quantile: float):
    found = moved(merged(models, "trust_region", images=IMAGES, quantile=quantile, scaling_factor=1.0), models)
    deltas = task_vectors(models)
    omega = conflicts(slopes, deltas)
    wanted = masked(deltas, omega, quantile)
    assert differing(found, wanted) <= 2, "but for a tie in float32"
    both = {name: delta * (found[name] != 0) for name, delta in wanted.items()}
    assert apart({name: delta * (wanted[name] != 0) for name, delta in found.items()}, both) < 1e-5
    entries = sum(delta.numel() for delta in wanted.values())
    assert abs(sum(int((delta == 0).sum()) for delta in found.values()) - (1 - quantile) * entries) <= 3


def test_task_vectors_in_place_of_gradients(models: Models):
    found = clipfuse.merge(models, "trust_region", zero_shot=True, quantile=0.9, scaling_factor=1.0)
    deltas = task_vectors(models)
    own = [{name: delta[number].abs() for name, delta in deltas.items()} for number in range(3)]
    wanted = masked(deltas, conflicts(own, deltas), 0.9)
    assert differing(moved(found, models), wanted) <= 2
    assert "train_images" not in found.recipe["uses"]


def test_with_images_it_says_what_it_looks_at(models: Models):
    assert merged(models, "trust_region", images=2).recipe["uses"] == list(USES)
    with pytest.raises(ConfigError, match="trust_region: looks at images"):
        clipfuse.merge(models, "trust_region", images=2)


def test_all_of_it_is_task_arithmetic(models: Models):
    found = moved(merged(models, "trust_region", images=2, quantile=1.0), models)
    assert apart(found, {name: 0.3 * delta.sum(0) for name, delta in task_vectors(models).items()}) < 1e-5


def test_one_expert_is_in_conflict_with_nobody(models: Models):
    alone = {BASE: models[BASE], "signs": models["signs"]}
    found = moved(merged(alone, "trust_region", images=2, scaling_factor=1.0), models)
    assert apart(found, {name: delta[1] for name, delta in task_vectors(models).items()}) < 1e-5


def test_entries_that_one_expert_alone_has_moved_are_kept(models: Models):
    """Where nearly all entries are without conflict, these stay and the others go."""
    name = "encoder.layers.0.mlp.fc1.weight"
    for task in ("signs", "roads"):
        models[task] = {**models[BASE], name: models[BASE][name].clone()}
        models[task][name][0] += 0.1
    found = moved(clipfuse.merge(models, "trust_region", zero_shot=True, quantile=0.5, scaling_factor=1.0), models)
    wanted = {key: delta[0] for key, delta in task_vectors(models).items()}
    wanted[name][0] = 0
    assert apart(found, wanted) < 1e-5


def test_it_goes_on_where_it_was_interrupted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("clipfuse.stats.gradients.MOST", 3)  # three steps a task
    check_goes_on(monkeypatch, trust_region, TrustRegion(images=8, quantile=0.7), USES, stops=(2, 6))


def test_order_statistics_are_exact(monkeypatch: pytest.MonkeyPatch):
    module = import_module("clipfuse.fusion.trust_region")  # as an attribute of the package it is the rule
    monkeypatch.setattr(module, "STRETCH", 1000)
    random = torch.Generator().manual_seed(0)
    numbers = torch.rand(5000, generator=random) ** 20
    numbers[::7] = 0
    numbers[:300] = numbers[4000]
    tensors = {"a": numbers[:4999].view(-1, 1), "b": numbers[4999:]}
    ordered = numbers.sort().values
    assert all(smallest(tensors, rank) == float(ordered[rank]) for rank in (0, 714, 715, 2500, 4998, 4999))
    for odd in (float("inf"), float("nan")):
        with pytest.raises(PoolError, match="not finite"):
            smallest({"a": torch.tensor([0.0, odd])}, 0)


@pytest.mark.parametrize("settings", [{"images": 0}, {"quantile": 0.0}, {"quantile": 99.0}])
def test_bad_settings_are_named(settings: dict):
    with pytest.raises(ConfigError, match=f"method.{next(iter(settings))}"):
        merged(tiny_models(), "trust_region", **settings)
