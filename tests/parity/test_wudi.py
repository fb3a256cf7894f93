"""wudi against Adam by torch and pseudo-inverses by torch, in float64."""

import pytest
import torch
from random_models import random_models
from references import Models
from torch import Tensor, nn

import clipfuse
from clipfuse.config.fusionbench import translate
from clipfuse.errors import ConfigError
from clipfuse.fusion.adam import descend
from clipfuse.fusion.registry import METHODS
from clipfuse.fusion.wudi import wudi
from clipfuse.pool import Leaf


@pytest.fixture(params=[0.0, 0.8], ids=["uncorrelated", "correlated"])
def models(request: pytest.FixtureRequest) -> Models:
    return random_models(request.param)


def loss(merged: Tensor, deltas: Tensor) -> Tensor:
    """Σ_i ‖(Δ − τ_i) τ_iᵀ‖² / ‖τ_i‖², experts of zeros left out."""
    return sum(((merged - d) @ d.T).square().sum() / d.square().sum() for d in deltas if d.any())


def adam(deltas: Tensor, steps: int, lr: float) -> Tensor:
    merged = nn.Parameter(deltas.sum(0))
    optimizer = torch.optim.Adam([merged], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(merged, deltas).backward()
        optimizer.step()
    return merged.detach()


def closed(deltas: Tensor) -> Tensor:
    grams = [d.T @ d / d.square().sum() for d in deltas]
    products = sum(d @ gram for d, gram in zip(deltas, grams, strict=True))
    return products @ torch.linalg.pinv(sum(grams), rtol=1e-11, hermitian=True)


def leaf_of(deltas: Tensor) -> Leaf:
    tasks = tuple(f"expert {k}" for k in range(len(deltas)))
    return Leaf("weight", tasks, torch.zeros_like(deltas[0]), tuple(deltas))


def rule(deltas: Tensor, **settings) -> Tensor:
    return wudi(leaf_of(deltas), METHODS["wudi"].config.model_validate(settings)).double()


def normal(*shape: int, seed: int = 0, spread: float = 3e-4) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * spread


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("solver", ["adam", "closed"])
def test_every_parameter_of_a_model(models: Models, solver: str):
    found = clipfuse.merge(models, "wudi", solver=solver, steps=10, lr=1e-4).tensors
    base = models.pop("_pretrained_")
    for name, tensor in found.items():
        deltas = torch.stack([expert[name].double() - base[name] for expert in models.values()])
        if deltas.ndim == 3:
            want = closed(deltas) if solver == "closed" else adam(deltas, 10, 1e-4)
        else:
            want = deltas.mean(0)
        assert distance(tensor.double() - base[name], want) < 1e-5, name


@pytest.mark.parametrize("shape", [(4, 96, 96), (4, 120, 48), (4, 48, 120), (8, 20, 60)])
def test_the_published_path(shape: tuple[int, ...]):
    deltas = normal(*shape)
    assert distance(rule(deltas), adam(deltas.double(), 400, 1e-5)) < 2e-6


def test_the_first_step_goes_the_right_way_at_every_entry():
    """It has one length however small the gradient: what learning Δ itself, in float32, gets wrong."""
    deltas = normal(4, 96, 96)
    start = deltas.double().sum(0)
    found, want = rule(deltas, steps=1, lr=1.0) - start, adam(deltas.double(), 1, 1.0) - start
    assert distance(found, want) < 1e-6


def test_experts_that_do_not_interfere_stay():
    apart = torch.zeros(2, 8, 64)
    apart[0, :, :32], apart[1, :, 32:] = normal(8, 32, seed=1), normal(8, 32, seed=2)
    assert torch.equal(rule(apart), apart.double().sum(0))
    directions = torch.linalg.qr(normal(64, 64).double()).Q.view(4, 16, 64)
    deltas = torch.stack([normal(64, 16, seed=k) @ d.float() for k, d in enumerate(directions)])
    assert distance(rule(deltas), deltas.double().sum(0)) < 1e-3, "orthogonal to 1e-8 only"
    assert distance(rule(deltas), adam(deltas.double(), 400, 1e-5)) < 3e-4


@pytest.mark.parametrize("solver", ["adam", "closed"])
def test_one_expert_is_that_expert(solver: str):
    models = {name: m for name, m in random_models().items() if name in ("_pretrained_", "signs")}
    found = clipfuse.merge(models, "wudi", solver=solver, steps=50).tensors
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, models["signs"][name], atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("solver", ["adam", "closed"])
def test_an_expert_of_zeros_has_no_say(solver: str):
    deltas = normal(3, 40, 30)
    with_zeros = torch.cat([deltas, torch.zeros(2, 40, 30)])
    assert distance(rule(with_zeros, solver=solver), rule(deltas, solver=solver)) < 1e-6
    assert torch.equal(rule(torch.zeros(3, 40, 30), solver=solver), torch.zeros(40, 30).double())


@pytest.mark.parametrize("shape", [(8, 64, 64), (8, 100, 40), (8, 40, 100), (2, 30, 90)])
def test_closed_is_the_minimum(shape: tuple[int, ...]):
    deltas = normal(*shape)
    found, exact = rule(deltas, solver="closed"), deltas.double()
    slopes = [
        torch.autograd.functional.jacobian(lambda merged: loss(merged, exact), at).norm()
        for at in (found, exact.sum(0))
    ]
    assert slopes[0] < 1e-6 * slopes[1]
    assert loss(found, exact) <= loss(rule(deltas), exact) < loss(exact.sum(0), exact)


@pytest.mark.parametrize("rank", [1, 6])
def test_closed_on_experts_of_low_rank(rank: int):
    """A has no inverse; directions that no expert has stay empty."""
    deltas = torch.stack([normal(48, rank, seed=k, spread=1.0) @ normal(rank, 60, seed=9 + k) for k in range(3)])
    found = rule(deltas, solver="closed")
    assert distance(found, closed(deltas.double())) < 5e-5
    rows = torch.linalg.svd(deltas.double().flatten(0, 1)).Vh
    assert found.matmul(rows[3 * rank :].T).norm() < 1e-4 * found.norm()


def test_closed_where_directions_are_weak():
    """Singular values that fall as 1/j²: the least is 1e-3 of the greatest, far above the cutoff."""
    falling = torch.arange(1, 41).double() ** -2
    pairs = [
        (torch.linalg.qr(normal(40, 40, seed=k).double()).Q, torch.linalg.qr(normal(40, 40, seed=9 + k).double()).Q)
        for k in range(2)
    ]
    deltas = torch.stack([(u * falling) @ v.T for u, v in pairs]).float()
    assert distance(rule(deltas, solver="closed"), closed(deltas.double())) < 1e-6


def test_adam_in_parts_is_torchs():
    """More elements than are updated at a time, and not a multiple of them."""
    target, weight = normal(70_001, spread=1.0), normal(70_001, seed=1, spread=1.0).exp()
    ours = torch.zeros_like(target)
    descend(ours, lambda out: torch.mul(ours - target, weight, out=out), steps=30, lr=0.01)
    theirs = nn.Parameter(torch.zeros_like(target, dtype=torch.float64))
    optimizer = torch.optim.Adam([theirs], lr=0.01)
    for _ in range(30):
        theirs.grad = (theirs.detach() - target) * weight
        optimizer.step()
    torch.testing.assert_close(ours.double(), theirs.detach(), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("settings", [{"steps": 0}, {"lr": 0.0}, {"solver": "sgd"}])
def test_bad_settings_are_named(settings: dict):
    with pytest.raises(ConfigError, match=f"method.{next(iter(settings))}"):
        clipfuse.merge(random_models(), "wudi", **settings)


def test_fusionbench_words():
    tree, _ = translate({"method": {"name": "wudi/wudi", "iter_num": 300}})
    assert tree["method"] == {"name": "wudi", "steps": 300}
