"""Rules against short float64 references, on correlated and uncorrelated experts."""

import pytest
import torch
from random_models import random_models
from references import Models, check, flat, result, split

import clipfuse


@pytest.fixture(params=[0.0, 0.8], ids=["uncorrelated", "correlated"])
def models(request: pytest.FixtureRequest) -> Models:
    return random_models(request.param)


@pytest.mark.parametrize("weights", [None, {"digits": 1.0, "signs": -0.5, "roads": 0.25}])
def test_task_arithmetic(models: Models, weights):
    base, _, deltas = split(models)
    row = torch.tensor(list(weights.values()) if weights else [1.0, 1.0, 1.0], dtype=torch.float64)[:, None]
    found = result(models, "task_arithmetic", weights=weights, scaling_factor=0.4)
    check(found, base, 0.4 * (row * deltas).sum(0), 0.4 * deltas.abs().sum(0))


def test_simple_average_needs_no_base(models: Models):
    _, experts, _ = split(models)
    models = {name: tensors for name, tensors in models.items() if name != "_pretrained_"}
    check(result(models, "simple_average"), experts.mean(0), torch.zeros(()), experts.abs().mean(0))


@pytest.mark.parametrize("normalize", [True, False])
def test_weighted_average(models: Models, normalize: bool):
    _, experts, _ = split(models)
    weights = torch.tensor([2.0, 0.5, 1.5], dtype=torch.float64)
    want = (weights[:, None] * experts).sum(0) / (weights.sum() if normalize else 1)
    found = result(models, "weighted_average", weights=weights.tolist(), normalize=normalize)
    check(found, want, torch.zeros(()), (weights[:, None] * experts).abs().sum(0))


def test_magmax(models: Models):
    base, _, deltas = split(models)
    sizes = deltas.abs().sort(0).values
    want = deltas.gather(0, deltas.abs().argmax(0, keepdim=True))[0]
    near = sizes[-1] - sizes[-2] < 1e-7
    check(result(models, "magmax"), base, 0.5 * want, 0.5 * deltas.abs().sum(0), near)


def test_magmax_takes_the_later_of_equals():
    base = {name: torch.zeros_like(t) for name, t in random_models()["_pretrained_"].items()}
    values = {"a": 1.0, "b": -2.0, "c": 2.0, "d": -2.0, "e": 0.5}
    experts = {task: {n: t + v for n, t in base.items()} for task, v in values.items()}
    assert result({"_pretrained_": base, **experts}, "magmax", scaling_factor=1.0).unique().tolist() == [-2.0]


@pytest.mark.parametrize("keep", [0.05, 0.2, 0.9, 1.0])
@pytest.mark.parametrize("merge", ["sum", "mean"])
def test_ties_merging(models: Models, keep: float, merge: str):
    base, _, deltas = split(models)
    d = deltas.shape[1]
    stored = (torch.stack([flat(m) for n, m in models.items() if n != "_pretrained_"]).float() - base.float()).double()
    if keep < 1:
        floors = stored.abs().kthvalue(d - int(keep * d), dim=1, keepdim=True).values
        deltas = deltas * (stored.abs() >= floors)
    total = deltas.sum(0)
    sign = torch.where(total == 0, total.sign().sum().sign(), total.sign())
    agreeing = deltas * (deltas * sign > 0)
    want = agreeing.sum(0)
    if merge == "mean":
        want = want / (agreeing != 0).sum(0).clamp(min=1)
    near = (total.abs() < 1e-8) & (deltas != 0).any(0)
    check(result(models, "ties_merging", keep=keep, merge=merge), base, 0.3 * want, 0.3 * deltas.abs().sum(0), near)


def test_ties_zeros_take_the_majority_sign():
    """Where the trimmed entries cancel, the sign that won most elements of the model decides."""
    base = {name: torch.zeros_like(t) for name, t in random_models()["_pretrained_"].items()}
    a = {n: torch.full_like(t, -1.0) for n, t in base.items()}
    b = {n: torch.full_like(t, -1.0) for n, t in base.items()}
    a["post_layernorm.bias"], b["post_layernorm.bias"] = a["post_layernorm.bias"] * -3, b["post_layernorm.bias"] * 3
    found = clipfuse.merge({"_pretrained_": base, "a": a, "b": b}, "ties_merging", keep=1.0, scaling_factor=1.0).tensors
    assert found["post_layernorm.bias"].unique().tolist() == [-3.0]
    assert found["post_layernorm.weight"].unique().tolist() == [-2.0]


def test_ties_keeping_everything_with_agreeing_signs_is_task_arithmetic():
    base = random_models()["_pretrained_"]
    experts = {task: {n: t + step for n, t in base.items()} for task, step in [("a", 0.25), ("b", 0.5)]}
    models = {"_pretrained_": base, **experts}
    ties, sums = (result(models, m, **s) for m, s in [("ties_merging", {"keep": 1.0}), ("task_arithmetic", {})])
    torch.testing.assert_close(ties, sums, atol=1e-7, rtol=0)


@pytest.mark.parametrize("method", ["task_arithmetic", "ties_merging", "magmax"])
def test_one_expert_with_lambda_one_is_that_expert(models: Models, method: str):
    pair = {name: models[name] for name in ("_pretrained_", "signs")}
    settings = {"keep": 1.0} if method == "ties_merging" else {}
    found = result(pair, method, scaling_factor=1.0, **settings)
    torch.testing.assert_close(found, flat(models["signs"]), atol=1e-7, rtol=1e-6)
