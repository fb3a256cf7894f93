"""cart against singular value decompositions in float64."""

import math

import pytest
import torch
from random_models import random_models
from references import Models, flat, result

import clipfuse
from clipfuse.errors import ConfigError
from clipfuse.fusion.cart import cart, rank_of
from clipfuse.fusion.registry import METHODS
from clipfuse.pool import PoolView, pool_from_memory


@pytest.fixture(params=[0.0, 0.8], ids=["uncorrelated", "correlated"])
def models(request: pytest.FixtureRequest) -> Models:
    return random_models(request.param)


@pytest.mark.parametrize(("rank_fraction", "spread"), [(0.08, 1.0), (0.5, -0.7), (0.01, 2.0)])
def test_every_parameter_of_a_model(models: Models, rank_fraction: float, spread: float):
    found = clipfuse.merge(models, "cart", rank_fraction=rank_fraction, spread=spread, scaling_factor=1.0).tensors
    base = models.pop("_pretrained_")
    for name, tensor in found.items():
        experts = torch.stack([expert[name].double() for expert in models.values()])
        want = experts.mean(0)
        if want.ndim == 2:
            rank = math.ceil(rank_fraction * min(want.shape))
            for expert in experts - experts.mean(0):
                u, s, vh = torch.linalg.svd(expert, full_matrices=False)
                want = want + spread * (u[:, :rank] * s[:rank]) @ vh[:rank]
        error, size = (tensor.double() - want).norm(), (want - base[name]).norm()
        assert error < 1e-4 * size, name


@pytest.mark.parametrize("settings", [{"rank_fraction": 1.0}, {"spread": 0.0}])
def test_all_or_none_of_the_spread_is_the_average(models: Models, settings: dict):
    found, average = result(models, "cart", **settings), result(models, "simple_average")
    torch.testing.assert_close(found, average, atol=2e-7, rtol=1e-6)


@pytest.mark.parametrize("spread", [0.25, -2.0])
def test_the_rule_is_affine_in_spread_and_so_is_the_engine(models: Models, spread: float):
    """The engine evaluates the rule at 0 and 1 only."""
    rule, pool = METHODS["cart"], pool_from_memory(models)
    found = clipfuse.merge(models, "cart", spread=spread).tensors
    for leaf in PoolView(pool):
        at = {x: cart(leaf, rule.config.model_validate({"spread": x})) for x in (0.0, spread, 1.0)}
        torch.testing.assert_close(at[spread], torch.lerp(at[0.0], at[1.0], spread), atol=1e-7, rtol=1e-6)
        torch.testing.assert_close(found[leaf.name], leaf.base + at[spread], atol=3e-7, rtol=1e-6)


def test_one_expert_is_that_expert(models: Models):
    pair = {name: models[name] for name in ("_pretrained_", "signs")}
    torch.testing.assert_close(result(pair, "cart"), flat(models["signs"]), atol=1e-7, rtol=1e-6)


def test_equal_experts_are_that_expert(models: Models):
    same = {"_pretrained_": models["_pretrained_"], **dict.fromkeys(("a", "b", "c"), models["signs"])}
    torch.testing.assert_close(result(same, "cart", spread=1.0), flat(models["signs"]), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(
    ("fraction", "full", "rank"), [(0.08, 768, 62), (0.08, 1024, 82), (0.07, 100, 7), (1.0, 50, 50), (1e-12, 50, 1)]
)
def test_ranks_are_rounded_up(fraction: float, full: int, rank: int):
    assert rank_of(fraction, full) == rank


@pytest.mark.parametrize("rank_fraction", [0.0, 1.5])
def test_bad_shares_are_named(rank_fraction: float):
    with pytest.raises(ConfigError, match=r"method\.rank_fraction"):
        clipfuse.merge(random_models(), "cart", rank_fraction=rank_fraction)
