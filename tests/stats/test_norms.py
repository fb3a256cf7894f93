"""Streamed norms and inner products against float64 on whole tensors."""

import pytest
import torch
from random_models import TASKS, random_models
from torch import Tensor

from clipfuse.pool import PoolView, pool_from_memory
from clipfuse.stats.norms import grams, squared_norms

Models = dict[str, dict[str, Tensor]]


@pytest.fixture(params=[0.0, 0.8], ids=["uncorrelated", "correlated"])
def models(request: pytest.FixtureRequest) -> Models:
    return random_models(request.param)


def rows(models: Models, name: str) -> Tensor:
    """τ of one parameter, rounded to float32 as everywhere, (task, n) float64."""
    return torch.stack([(models[task][name] - models["_pretrained_"][name]).flatten() for task in TASKS]).double()


def test_grams_are_float64(models: Models):
    for name, found in grams(PoolView(pool_from_memory(models))).items():
        want = rows(models, name)
        torch.testing.assert_close(found, want @ want.T, atol=1e-13 * float(want.square().sum()), rtol=1e-13)


def test_squared_norms_are_float64(models: Models):
    found = squared_norms(PoolView(pool_from_memory(models)))
    want = sum(rows(models, name).square().sum(1) for name in models["_pretrained_"])
    torch.testing.assert_close(found, want, atol=0, rtol=1e-13)


def test_bits_do_not_depend_on_threads(models: Models):
    one, three = (PoolView(pool_from_memory(models), threads=threads) for threads in (1, 3))
    assert torch.equal(squared_norms(one), squared_norms(three))
    first, second = grams(one), grams(three)
    assert all(torch.equal(first[name], second[name]) for name in first)
