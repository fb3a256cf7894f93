"""Rules that follow from lengths, angles and sizes of task vectors, against float64."""

import math

import pytest
import torch
from parity.test_references import check, flat, result, split
from random_models import random_models
from torch import Tensor

import clipfuse
from clipfuse.errors import ConfigError

Models = dict[str, dict[str, Tensor]]
TASKS = ("digits", "signs", "roads")


@pytest.fixture(params=[0.0, 0.8], ids=["uncorrelated", "correlated"])
def models(request: pytest.FixtureRequest) -> Models:
    return random_models(request.param)


def test_metagpt(models: Models):
    models["signs"] = {n: t + 3 * (t - models["_pretrained_"][n]) for n, t in models["signs"].items()}
    base, _, deltas = split(models)
    weights = deltas.square().sum(1) / deltas.square().sum()
    assert weights.max() > 0.8
    check(result(models, "metagpt"), base, (weights[:, None] * deltas).sum(0), deltas.abs().sum(0))


@pytest.mark.parametrize("angle", ["mean_angle", "mean_cosine"])
def test_model_stock(models: Models, angle: str):
    found = clipfuse.merge(models, "model_stock", angle=angle).tensors
    for name, base in models["_pretrained_"].items():
        deltas = [(models[task][name].double() - base.double()).flatten() for task in TASKS]
        cosines = [float(a @ b / (a.norm() * b.norm())) for i, a in enumerate(deltas) for b in deltas[:i]]
        angles = [math.acos(cosine) for cosine in cosines]
        cosine = math.cos(sum(angles) / 3) if angle == "mean_angle" else sum(cosines) / 3
        want = 3 * cosine / (2 * cosine + 1) * torch.stack(deltas).mean(0)
        size = base.double().abs().flatten() + torch.stack(deltas).abs().sum(0)
        assert ((found[name].double() - base).flatten() - want).abs().le(2**-22 * size).all(), name


@pytest.mark.parametrize("angle", ["mean_angle", "mean_cosine"])
def test_model_stock_of_one_expert_twice_is_that_expert(models: Models, angle: str):
    twice = {"_pretrained_": models["_pretrained_"], "a": models["signs"], "b": models["signs"]}
    torch.testing.assert_close(result(twice, "model_stock", angle=angle), flat(models["signs"]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("t", "k"), [(0.4, 2), (1.0, 1), ([0.2, 0.5, 3.0], 2), ({"digits": 0.0, "signs": 1, "roads": 0.4}, 3)]
)
def test_consensus(models: Models, t, k: int):
    base, _, deltas = split(models)
    together = deltas.sum(0)
    row = list(t.values()) if isinstance(t, dict) else t if isinstance(t, list) else [t] * 3
    gaps = deltas.abs() - torch.tensor(row, dtype=torch.float64)[:, None] * (together - deltas).abs()
    want = together * ((gaps > 0).sum(0) >= k)
    assert 0 < (want != 0).double().mean() < 1
    check(
        result(models, "consensus", t=t, k=k), base, 0.3 * want, 0.3 * deltas.abs().sum(0), (gaps.abs() < 1e-8).any(0)
    )


def test_consensus_checks_its_thresholds(models: Models):
    with pytest.raises(ConfigError, match=r"method.t: unknown expert 'sign'; did you mean 'signs'"):
        clipfuse.merge(models, "consensus", t={"sign": 1.0})
    with pytest.raises(ConfigError, match="method.t: 2 numbers for 3 experts"):
        clipfuse.merge(models, "consensus", t=[0.1, 0.2])
    with pytest.raises(ConfigError, match=r"method\.t"):
        clipfuse.merge(models, "consensus", t=-0.1)


@pytest.mark.parametrize("angle", ["mean_angle", "mean_cosine"])
def test_model_stock_of_task_vectors_that_cancel_is_the_base(models: Models, angle: str):
    base, forth = models["_pretrained_"], models["signs"]
    back = {name: tensor - (forth[name] - tensor) for name, tensor in base.items()}
    still = clipfuse.merge({"_pretrained_": base, "a": forth, "b": back}, "model_stock", angle=angle).tensors
    for name, tensor in base.items():
        torch.testing.assert_close(still[name], tensor, atol=1e-7, rtol=0)
    one = result({"_pretrained_": base, "a": forth, "b": base}, "model_stock", angle=angle)
    torch.testing.assert_close(one, flat(base), atol=1e-7, rtol=0)  # a pair with a zero vector has cosine 0


def test_consensus_needs_as_many_masks_as_k(models: Models):
    assert len(models) == 4
    with pytest.raises(ConfigError, match="4 masks cannot agree where there are 3 experts"):
        result(models, "consensus", k=4)
    both = {name: models[name] for name in ("_pretrained_", "signs")}
    torch.testing.assert_close(
        result(both, "consensus", k=1, t=0.0, scaling_factor=1.0), flat(models["signs"]), atol=1e-7, rtol=1e-6
    )
