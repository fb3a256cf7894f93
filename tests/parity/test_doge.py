"""doge_ta against its loss, differentiated by torch, and Adam by torch, in float64."""

import pytest
import torch
from random_models import random_models
from references import Models
from torch import Tensor, nn

import clipfuse
from clipfuse.config.fusionbench import translate
from clipfuse.errors import ConfigError
from clipfuse.fusion.doge import learn_shift, shared_directions
from clipfuse.fusion.registry import METHODS

LAYERS = "encoder.layers."


@pytest.fixture(params=[0.0, 0.8], ids=["uncorrelated", "correlated"])
def models(request: pytest.FixtureRequest) -> Models:
    return random_models(request.param)


def task_vectors(models: Models) -> dict[str, Tensor]:
    """Name → τ (task, rows, columns) as float32 has them, float64."""
    base, *experts = models.values()
    names = [name for name, tensor in base.items() if name.startswith(LAYERS) and tensor.ndim == 2]
    return {name: torch.stack([expert[name] - base[name] for expert in experts]).double() for name in names}


def kept(deltas: dict[str, Tensor], keep: float) -> dict[str, Tensor]:
    """Name → whether an entry is among its expert's largest over all matrices."""
    sizes = torch.cat([d.flatten(1) for d in deltas.values()], 1).abs()
    rank = sizes.shape[1] - int(keep * sizes.shape[1])
    floors = sizes.kthvalue(rank, 1).values if rank else torch.zeros(len(sizes))
    return {name: d.abs() >= floors.view(-1, 1, 1) for name, d in deltas.items()}


def shift(deltas: Tensor, factors: Tensor, subspace: int, steps: int, lr: float) -> Tensor:
    count, full = len(deltas), min(deltas.shape[1:])
    own = [torch.linalg.svd(d, full_matrices=False).U[:, : full // count] for d in deltas]
    shared = torch.linalg.svd(torch.cat(own, 1), full_matrices=False).U[:, : full // subspace]
    delta = nn.Parameter(torch.zeros_like(deltas[0]))
    optimizer = torch.optim.Adam([delta], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        merged = sum(f * (d + delta) for f, d in zip(factors, deltas, strict=True))
        sum((d * (d - merged)).sum(1).square().sum() for d in deltas).backward()
        delta.grad = delta.grad - shared @ (shared.T @ delta.grad)
        optimizer.step()
    return delta.detach()


def factors_of(deltas: Tensor, eta: float = 0.07) -> Tensor:
    return eta / deltas.flatten(1).norm(dim=1)


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(("keep", "subspace"), [(0.3, 6), (1.0, 2)])
def test_every_parameter_of_a_model(models: Models, keep: float, subspace: int):
    settings = {"keep": keep, "subspace": subspace, "eta": 0.1, "steps": 8, "lr": 1e-3}
    found = clipfuse.merge(models, "doge_ta", **settings).tensors
    base, deltas = models["_pretrained_"], task_vectors(models)
    masks = kept(deltas, keep)
    for name, tensor in found.items():
        if name not in deltas:
            assert torch.equal(tensor, base[name]), name
            continue
        factors = factors_of(deltas[name], 0.1)
        learned = shift(deltas[name], factors, subspace, 8, 1e-3)
        want = (factors.view(-1, 1, 1) * (deltas[name] + learned) * masks[name]).sum(0)
        assert distance(tensor.double() - base[name], want) < 5e-6, name


@pytest.mark.parametrize("size", [(8, 48, 96), (8, 96, 48), (3, 64, 64)])
def test_the_published_path(size: tuple[int, ...]):
    deltas = torch.randn(size, generator=torch.Generator().manual_seed(0)) * 3e-4
    cfg = METHODS["doge_ta"].config()
    factors = factors_of(deltas.double())
    found = learn_shift(deltas, factors.tolist(), shared_directions(deltas, 6), cfg).double()
    assert distance(found, shift(deltas.double(), factors, 6, 400, 1e-4)) < 1e-5


def test_without_a_shift_it_is_scaled_and_trimmed_task_arithmetic(models: Models):
    found = clipfuse.merge(models, "doge_ta", steps=1, lr=1e-30).tensors
    deltas = task_vectors(models)
    for name, mask in kept(deltas, 0.3).items():
        want = (factors_of(deltas[name]).view(-1, 1, 1) * deltas[name] * mask).sum(0)
        assert distance(found[name].double() - models["_pretrained_"][name], want) < 5e-6


def test_floors_know_only_what_is_merged(models: Models):
    before = clipfuse.merge(models, "doge_ta", steps=2).tensors
    models["signs"] = {
        name: t if name.startswith(LAYERS) and t.ndim == 2 else t + 9 for name, t in models["signs"].items()
    }
    after = clipfuse.merge(models, "doge_ta", steps=2).tensors
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_expert_of_zeros_adds_nothing_but_its_share_of_the_subspace():
    deltas = torch.randn(4, 30, 40, generator=torch.Generator().manual_seed(0))
    deltas[3] = 0
    assert shared_directions(deltas, 3).shape == (30, 10)
    assert shared_directions(deltas, 1).shape == (30, 21), "three experts with 30 // 4 directions each"
    assert shared_directions(torch.zeros(4, 30, 40), 6).shape == (30, 0)


def test_directions_of_low_rank_experts_are_theirs():
    left = torch.linalg.qr(torch.randn(64, 6, generator=torch.Generator().manual_seed(0))).Q
    deltas = torch.stack([left[:, :3] @ torch.randn(3, 64), left[:, 3:] @ torch.randn(3, 64)])
    shared = shared_directions(deltas, 2)
    assert shared.shape == (64, 6), "not 32"
    torch.testing.assert_close(shared @ shared.T, left @ left.T, atol=1e-5, rtol=0)


@pytest.mark.parametrize("experts", [1, 70])
def test_few_and_many_experts(experts: int):
    """With more experts than dimensions nobody has a share in the subspace; all may move."""
    deltas = torch.randn(experts, 64, 64, generator=torch.Generator().manual_seed(0))
    shared = shared_directions(deltas, 6)
    assert shared.shape == (64, 10 if experts == 1 else 0)
    factors = factors_of(deltas.double()).tolist()
    found = learn_shift(deltas, factors, shared, METHODS["doge_ta"].config(steps=3))
    assert found.isfinite().all()
    assert found.any()


@pytest.mark.parametrize("settings", [{"keep": 0.0}, {"keep": 30.0}, {"subspace": 0}, {"steps": 0}, {"eta": -1.0}])
def test_bad_settings_are_named(settings: dict):
    with pytest.raises(ConfigError, match=f"method.{next(iter(settings))}"):
        clipfuse.merge(random_models(), "doge_ta", **settings)


def test_fusionbench_words():
    tree, _ = translate({"method": {"name": "doge_ta/doge_ta", "lamda": 0.05, "K": 30, "subspace": 6}})
    assert tree["method"] == {"name": "doge_ta", "eta": 0.05, "keep": 0.3, "subspace": 6}
