"""Edits against short float64 references, and what must hold for them."""

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from random_models import random_models
from references import Models, check, flat, result
from torch import Tensor

import clipfuse
from clipfuse.errors import ConfigError
from clipfuse.fusion.dare import Dare, dare
from clipfuse.fusion.della import Della, della
from clipfuse.fusion.random_bits import philox_key
from clipfuse.pool import Leaf

Edited = Callable[[str, str, Tensor], Tensor]
"""(parameter, expert, τ) → edited τ, float64."""


@pytest.fixture(scope="module", params=[0.0, 0.8], ids=["uncorrelated", "correlated"])
def models(request: pytest.FixtureRequest) -> Models:
    return random_models(request.param)


def edited(models: Models, tree: dict[str, Any], reference: Edited, seed: int = 0) -> dict[str, int]:
    """Merge with the edit and compare with the sum of task vectors that `reference` edits; what was counted."""
    base = models["_pretrained_"]
    rows = {
        task: flat({name: reference(name, task, (value - base[name]).double()) for name, value in tensors.items()})
        for task, tensors in models.items()
        if task != "_pretrained_"
    }
    stack = torch.stack(list(rows.values()))
    found = clipfuse.merge(models, "task_arithmetic", edits=[tree], scaling_factor=1.0, seed=seed)
    check(flat(dict(found.tensors)), flat(base), stack.sum(0), stack.abs().sum(0))
    return found.recipe.get("measured", {})


def draws(seed: int, name: str, task: str, shape: torch.Size) -> Tensor:
    words = np.random.Philox(key=np.array(philox_key((seed, name, task)), np.uint64), counter=[0, 0, 0, 0]).random_raw(
        shape.numel()
    )
    parts = np.stack([(words >> np.uint64(16 * i)) & np.uint64(0xFFFF) for i in range(4)], 1).ravel()
    return torch.from_numpy(parts[: shape.numel()].astype(np.int64)).view(shape)


def like_base(value: Callable[[Tensor], Tensor]) -> Models:
    """A base of zeros and one expert."""
    base = {name: torch.zeros_like(t) for name, t in random_models()["_pretrained_"].items()}
    return {"_pretrained_": base, "signs": {name: value(t) for name, t in base.items()}}


@pytest.mark.parametrize(("drop", "rescale"), [(0.3, True), (0.99, True), (0.3, False)])
def test_dare(models: Models, drop: float, rescale: bool):
    threshold = round(drop * 65536)

    def reference(name: str, task: str, tau: Tensor) -> Tensor:
        return tau * (draws(3, name, task, tau.shape) >= threshold) / (1 - threshold / 65536 if rescale else 1)

    edited(models, {"name": "dare", "drop": drop, "rescale": rescale}, reference, seed=3)


@pytest.mark.parametrize(
    ("density", "epsilon", "range"), [(0.5, 0.3, "mergekit"), (0.5, 0.3, "paper"), (0.2, 0.0, "mergekit")]
)
def test_della(models: Models, density: float, epsilon: float, range: str):
    reach = epsilon if range == "mergekit" else epsilon / 2

    def reference(name: str, task: str, tau: Tensor) -> Tensor:
        rows = tau.reshape(len(tau), -1) if tau.ndim > 1 else tau[None]
        n = rows.shape[1]
        rank = np.argsort(np.argsort(rows.abs().numpy(), 1, kind="stable"), 1)
        chance = torch.from_numpy(np.round((density - reach + 2 * reach * rank / (n - 1)) * 65536) / 65536)
        keep = draws(3, name, task, tau.shape).view(rows.shape) >= 65536 * (1 - chance)
        return (rows * keep / chance).view(tau.shape)

    edited(models, {"name": "della", "density": density, "epsilon": epsilon, "range": range}, reference, seed=3)


def leaf(seed: int = 0, shape: tuple[int, ...] = (6, 500), tasks: tuple[str, ...] = ("a", "b")) -> Leaf:
    generator = torch.Generator().manual_seed(0)
    experts = {task: torch.randn(shape, generator=generator) for task in ("a", "b", "c")}
    return Leaf("w", tasks, torch.zeros(shape), tuple(experts[task] for task in tasks), seed=seed)


random_edits = pytest.mark.parametrize(
    ("edit", "cfg"), [(dare, Dare(drop=0.6)), (della, Della(density=0.4, epsilon=0.3))], ids=["dare", "della"]
)


@random_edits
def test_random_edits_keep_the_expectation(edit, cfg):
    """Of 400 seeds the mean is τ, to its standard error; what is kept, on average, is what should be."""
    tau = leaf().deltas
    runs = torch.stack([edit(leaf(seed), cfg) for seed in range(400)]).double()
    score = (runs.mean(0) - tau) / (runs.std(0) / 20).clamp_min(1e-12)
    assert abs(score.mean()) < 3 / tau.numel() ** 0.5
    assert 0.95 < score.std() < 1.05
    assert (runs != 0).double().mean() == pytest.approx(0.4, abs=0.002)


def test_della_keeps_large_entries_with_the_chance_of_their_rank():
    tau = leaf().deltas
    kept = torch.stack([della(leaf(seed), Della(density=0.5, epsilon=0.4)) != 0 for seed in range(400)]).double()
    by_rank = kept.mean(0).gather(2, tau.abs().argsort(2)).mean((0, 1))
    torch.testing.assert_close(by_rank, torch.linspace(0.1, 0.9, 500).double(), atol=0.04, rtol=0)


def test_della_without_epsilon_keeps_what_dare_keeps():
    kept, same = della(leaf(), Della(density=0.25, epsilon=0.0)), dare(leaf(), Dare(drop=0.75))
    torch.testing.assert_close(kept, same, rtol=1e-6, atol=0)
    assert torch.equal(della(leaf(), Della(density=1.0, epsilon=0.0)), leaf().deltas)


@random_edits
def test_random_edits_do_not_depend_on_the_other_experts(edit, cfg):
    alone, turned = edit(leaf(tasks=("b",)), cfg)[0], edit(leaf(tasks=("c", "b", "a")), cfg)
    assert torch.equal(alone, turned[1])
    assert not torch.equal(alone != 0, turned[2] != 0)
    assert not torch.equal(alone, edit(leaf(seed=1, tasks=("b",)), cfg)[0])


@pytest.mark.parametrize(("density", "top"), [(0.5, 0.1), (1.0, 0.25), (0.01, 0.0)])
def test_breadcrumbs(models: Models, density: float, top: float):
    def reference(name: str, task: str, tau: Tensor) -> Tensor:
        order = tau.abs().flatten().sort(stable=True).indices
        left = len(order) - int(top * len(order))
        out = torch.zeros(len(order), dtype=torch.float64)
        stay = order[left - int(density * left) : left]
        out[stay] = tau.flatten()[stay]
        return out.view(tau.shape)

    tree = {"name": "breadcrumbs", "density": density, "top": top}
    measured = edited(models, tree, reference)
    sizes = [tensor.numel() for tensor in models["signs"].values()]
    assert measured["breadcrumbs.kept.signs"] == sum(int(density * (n - int(top * n))) for n in sizes)
    assert measured["breadcrumbs.of.signs"] == sum(sizes)


def test_breadcrumbs_counts_equal_entries_by_place():
    """All entries are equal: the last 10 % go, of the rest the last half stays."""
    models = like_base(torch.ones_like)
    tree = {"name": "breadcrumbs", "density": 0.5, "top": 0.1}
    found = clipfuse.merge(models, "task_arithmetic", edits=[tree], scaling_factor=1.0).tensors
    for tensor in found.values():
        n = tensor.numel()
        left = n - int(0.1 * n)
        want = torch.zeros(n)
        want[left - int(0.5 * left) : left] = 1
        assert torch.equal(tensor.flatten(), want)


@pytest.mark.parametrize("keep", [0.001, 0.2, 1.0])
def test_magnitude_prune(models: Models, keep: float):
    def reference(name: str, task: str, tau: Tensor) -> Tensor:
        n = tau.numel()
        floor = tau.abs().flatten().sort().values[n - int(keep * n) - 1] if keep < 1 else 0.0
        return tau * (tau.abs() >= floor)

    tree = {"name": "magnitude_prune", "keep": keep}
    measured = edited(models, tree, reference)
    sizes = [tensor.numel() for tensor in models["signs"].values()]
    assert measured["magnitude_prune.kept.signs"] == sum(int(keep * n) + (keep < 1) for n in sizes)


def test_magnitude_prune_keeps_all_that_equal_the_last():
    models = like_base(torch.ones_like)
    measured = edited(models, {"name": "magnitude_prune", "keep": 0.1}, lambda name, task, tau: tau)
    assert measured["magnitude_prune.kept.signs"] == measured["magnitude_prune.of.signs"]


@pytest.mark.parametrize("settings", [{"rank": 5}, {"rank_fraction": 0.3}])
def test_truncate(models: Models, settings: dict[str, Any]):
    base = models["_pretrained_"]
    tree = {"name": "truncate", **settings}
    found = clipfuse.merge(models, "task_arithmetic", edits=[tree], scaling_factor=1.0).tensors
    for name, tensor in found.items():
        want = torch.zeros_like(tensor).double()
        for task in ("digits", "signs", "roads"):
            tau = models[task][name].double() - base[name].double()
            if tau.ndim == 2:
                u, s, vh = np.linalg.svd(tau.numpy(), full_matrices=False)
                k = settings.get("rank") or math.ceil(0.3 * len(s))
                tau = torch.from_numpy(u[:, :k] * s[:k] @ vh[:k])
            want += tau
        error = (tensor.double() - base[name].double() - want).norm() / want.norm()
        assert error < 1e-4, name


def test_truncate_at_full_rank_changes_nothing():
    models = random_models()
    plain = result(models, "task_arithmetic")
    assert torch.equal(result(models, "task_arithmetic", edits=[{"name": "truncate", "rank_fraction": 1.0}]), plain)


def test_truncate_says_once_which_matrices_stay_whole(caplog: pytest.LogCaptureFixture):
    """All are of rank 64 but the position embedding; ties_merging looks at everything four times."""
    models = random_models()
    with caplog.at_level(logging.WARNING):
        found = result(models, "ties_merging", edits=[{"name": "truncate", "rank": 64}])
    assert [record.message for record in caplog.records] == [
        "edits.truncate: rank 64 is more than 1 of 13 matrices have, which stay whole: "
        "embeddings.position_embedding.weight (17×64)"
    ]
    assert torch.equal(found, result(models, "ties_merging"))


@pytest.mark.parametrize("bits", [1, 4, 16])
def test_quantise(models: Models, bits: int):
    worst = []

    def reference(name: str, task: str, tau: Tensor) -> Tensor:
        low, high = float(tau.min()), float(tau.max())
        if low == high:
            return tau
        scale = (2**bits - 1) / (high - low)
        zero = -round(scale * low)
        whole = (torch.round(scale * tau) + zero).clamp(0, 2**bits - 1)
        found = (whole - zero) / scale
        worst.append(float((found - tau).abs().max() * scale))
        assert len(found.unique()) <= 2**bits
        return found

    edited(models, {"name": "quantise", "bits": bits}, reference)
    assert max(worst) <= 0.5 + 1e-6


def test_quantise_is_off_by_half_a_step_at_most_and_keeps_zeros_and_constants():
    ramp = like_base(lambda t: torch.linspace(0.3, 1.7, t.numel()).view(t.shape) - 0.5)
    found = clipfuse.merge(ramp, "task_arithmetic", edits=[{"name": "quantise", "bits": 3}], scaling_factor=1.0)
    for name, tensor in found.tensors.items():
        assert (tensor - ramp["signs"][name]).abs().max() <= 0.5 * 1.4 / 7 + 1e-6
        assert len(tensor.unique()) <= 8
    for model in (like_base(torch.zeros_like), like_base(lambda t: torch.full_like(t, 0.3))):
        found = clipfuse.merge(model, "task_arithmetic", edits=[{"name": "quantise", "bits": 1}], scaling_factor=1.0)
        assert torch.equal(flat(dict(found.tensors)), flat(model["signs"]))
    halves = like_base(lambda t: torch.arange(t.numel()).view(t.shape) % 3 / 2 + 0.5)  # three integers, but for a clamp
    found = clipfuse.merge(halves, "task_arithmetic", edits=[{"name": "quantise", "bits": 1}], scaling_factor=1.0)
    assert all(tensor.unique().tolist() == [0.0, 1.0] for tensor in found.tensors.values())
    spiked = like_base(lambda t: torch.zeros_like(t))
    for tensor in spiked["signs"].values():
        tensor.view(-1)[:2] = torch.tensor([-0.3, 1.0])
    found = clipfuse.merge(spiked, "task_arithmetic", edits=[{"name": "quantise", "bits": 4}], scaling_factor=1.0)
    assert all((tensor.view(-1)[2:] == 0).all() for tensor in found.tensors.values())


def test_factors_are_weights_of_any_rule():
    models = random_models()
    edits = [{"name": "factors", "factors": {"signs": -0.5, "roads": 2}}]
    weights = {"digits": 1.0, "signs": -0.5, "roads": 2.0}
    assert torch.equal(
        result(models, "task_arithmetic", edits=edits), result(models, "task_arithmetic", weights=weights)
    )
    edited(models, edits[0], lambda name, task, tau: weights[task] * tau)
    halved = {**models, "signs": {n: t + 0.5 * (models["signs"][n] - t) for n, t in models["_pretrained_"].items()}}
    found = result(models, "magmax", edits=[{"name": "factors", "factors": {"signs": 0.5}}])
    assert ((found - result(halved, "magmax")).abs() < 1e-7).double().mean() > 0.999


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        ({"name": "factors", "factors": {"sgns": 1.0}}, "edits.factors: unknown expert 'sgns'; did you mean 'signs'?"),
        ({"name": "truncate"}, "edits.0: takes exactly one of rank and rank_fraction"),
        ({"name": "truncate", "rank": 2, "rank_fraction": 0.5}, "takes exactly one of rank and rank_fraction"),
        ({"name": "truncate", "rank": 0}, "edits.0.rank: input should be greater than or equal to 1"),
        ({"name": "della", "density": 0.9, "epsilon": 0.2}, "probabilities from 0.7 to 1.1 must lie in (0, 1]"),
        ({"name": "della", "density": 0.1, "epsilon": 0.1}, "probabilities from 0 to 0.2"),
        ({"name": "della", "density": 0.5}, "edits.0.epsilon: is required"),
        ({"name": "breadcrumbs", "density": 0.5, "top": 1.0}, "edits.0.top: input should be less than 1"),
        ({"name": "magnitude_prune", "keep": 0.0}, "edits.0.keep: input should be greater than 0"),
        ({"name": "quantise", "bits": 0}, "edits.0.bits: input should be greater than or equal to 1"),
        ({"name": "dare", "drop": 1.0}, "edits.0.drop: input should be less than or equal to"),
    ],
)
def test_wrong_settings_are_named_before_weights_are_read(tree: dict[str, Any], says: str):
    with pytest.raises(ConfigError) as caught:
        clipfuse.merge(random_models(), "task_arithmetic", edits=[tree])
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_limits_of_della_may_be_reached():
    for density, epsilon in [(0.9, 0.1), (0.7, 0.3), (0.55, 0.45)]:
        assert della(leaf(), Della(density=density, epsilon=epsilon)).isfinite().all()
    assert Della(density=0.9, epsilon=0.2, range="paper").reach == 0.1
    tiny = della(leaf(), Della(density=1e-9, epsilon=0.0))
    assert tiny.isfinite().all()


@pytest.mark.parametrize("method", ["simple_average", "slerp"])
def test_methods_that_merge_weights_take_no_edits(method: str):
    with pytest.raises(ConfigError, match="takes no edits"):
        clipfuse.merge(random_models(), method, edits=[{"name": "quantise", "bits": 4}])


@pytest.mark.parametrize(
    "edits",
    [["dare", "dare"], ["dare", {"name": "della", "density": 0.5, "epsilon": 0.2}]],
    ids=["dare twice", "dare and della"],
)
def test_edits_of_one_chain_draw_apart(edits: list):
    name = "encoder.layers.0.mlp.fc1.weight"
    ones = {"_pretrained_": {name: torch.zeros(300, 300)}, "a": {name: torch.ones(300, 300)}}
    found = clipfuse.merge(ones, "task_arithmetic", edits=edits, scaling_factor=1.0).tensors[name]
    assert float(found.double().mean()) == pytest.approx(1, abs=0.06)
