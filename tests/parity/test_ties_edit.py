"""The edit of TIES against a short float64 reference, and against the method that it is the first part of."""

import pytest
import torch
from random_models import random_models
from references import Models, check, flat, result, split
from torch import Tensor

import clipfuse
from clipfuse.errors import ConfigError
from clipfuse.fusion.registry import EDITS
from clipfuse.fusion.trim_elect import ties
from clipfuse.testing import check_method

KEEP = (0.001, 0.2, 0.9, 1.0)


@pytest.fixture(scope="module", params=[0.0, 0.8], ids=["uncorrelated", "correlated"])
def models(request: pytest.FixtureRequest) -> Models:
    return random_models(request.param)


def edited(models: Models, keep: float) -> tuple[Tensor, Tensor]:
    """Edited τ (task, d), float64, and where the election is a tie in float32."""
    base, _, deltas = split(models)
    stored = (torch.stack([flat(m) for n, m in models.items() if n != "_pretrained_"]).float() - base.float()).double()
    d = deltas.shape[1]
    if keep < 1:
        floors = stored.abs().kthvalue(d - int(keep * d), dim=1, keepdim=True).values
        deltas = deltas * (stored.abs() >= floors)
    total = deltas.sum(0)
    sign = torch.where(total == 0, total.sign().sum().sign(), total.sign())
    return deltas * (deltas * sign > 0), (total.abs() < 1e-8) & (deltas != 0).any(0)


@pytest.mark.parametrize("keep", KEEP)
def test_each_task_vector_is_trimmed_and_freed_of_the_other_sign(models: Models, keep: float):
    base, _, deltas = split(models)
    wanted, near = edited(models, keep)
    for row in range(len(deltas)):
        weights = [float(other == row) for other in range(len(deltas))]
        edits = [{"name": "ties", "keep": keep}]
        found = result(models, "task_arithmetic", edits=edits, weights=weights, scaling_factor=1.0)
        check(found, base, wanted[row], deltas[row].abs(), near)


@pytest.mark.parametrize("keep", KEEP)
def test_task_arithmetic_after_the_edit_is_ties_merging(models: Models, keep: float):
    base, _, deltas = split(models)
    edits = [{"name": "ties", "keep": keep}]
    found = result(models, "task_arithmetic", edits=edits, scaling_factor=0.3)
    method = result(models, "ties_merging", keep=keep, merge="sum", scaling_factor=0.3)
    check(found, base, method - base, 0.3 * deltas.abs().sum(0))


def test_zeros_take_the_majority_sign():
    """Where the trimmed entries cancel, the sign that won most elements of the model decides."""
    base = {name: torch.zeros_like(t) for name, t in random_models()["_pretrained_"].items()}
    a = {n: torch.full_like(t, -1.0) for n, t in base.items()}
    b = {n: torch.full_like(t, -1.0) for n, t in base.items()}
    a["post_layernorm.bias"], b["post_layernorm.bias"] = a["post_layernorm.bias"] * -3, b["post_layernorm.bias"] * 3
    models = {"_pretrained_": base, "a": a, "b": b}
    edits = [{"name": "ties", "keep": 1.0}]
    found = clipfuse.merge(models, "task_arithmetic", edits=edits, scaling_factor=1.0).tensors
    assert found["post_layernorm.bias"].unique().tolist() == [-3.0]
    assert found["post_layernorm.weight"].unique().tolist() == [-2.0]


def test_one_expert_is_only_trimmed():
    models = random_models()
    pair = {name: models[name] for name in ("_pretrained_", "signs")}
    edits = [{"name": "ties", "keep": 1.0}]
    assert torch.equal(
        result(pair, "task_arithmetic", edits=edits, scaling_factor=1.0),
        result(pair, "task_arithmetic", scaling_factor=1.0),
    )


def test_the_edit_keeps_the_contracts():
    assert EDITS["ties"].function is ties
    check_method("ties")


def test_a_share_must_be_one():
    with pytest.raises(ConfigError, match=r"edits\.0\.keep: input should be greater than 0"):
        clipfuse.merge(random_models(), "task_arithmetic", edits=[{"name": "ties", "keep": 0.0}])
