"""tsv_merging, iso_c and iso_cts against singular value decompositions in float64."""

from collections.abc import Callable

import pytest
import torch
from random_models import random_models
from references import Models, flat, result
from torch import Tensor
from torch.linalg import svd

import clipfuse
from clipfuse.fusion.isotropic import own_directions

TASKS = ("digits", "signs", "roads")
METHODS = ("tsv_merging", "iso_c", "iso_cts")


@pytest.fixture(params=[0.0, 0.8], ids=["uncorrelated", "correlated"])
def models(request: pytest.FixtureRequest) -> Models:
    return random_models(request.param)


def thin(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return svd(matrix, full_matrices=False)


def polar(matrix: Tensor) -> Tensor:
    u, _, vh = thin(matrix)
    return u @ vh


def tsv_merging(deltas: Tensor) -> Tensor:
    count = min(deltas.shape[1:]) // len(deltas)
    parts = [thin(delta) for delta in deltas]
    u = polar(torch.cat([part[0][:, :count] for part in parts], 1))
    vh = polar(torch.cat([part[2][:count] for part in parts]))
    return u @ torch.cat([part[1][:count] for part in parts]).diag() @ vh


def iso_c(deltas: Tensor) -> Tensor:
    u, s, vh = thin(deltas.sum(0))
    return s.mean() * u @ vh


def iso_cts(deltas: Tensor, fraction: float = 0.8) -> Tensor:
    rank, experts = min(deltas.shape[1:]), len(deltas)
    k = rank - experts * round((rank - int(rank * fraction)) / experts)
    own = (rank - k) // experts
    u, s, vh = (part for part in thin(deltas.sum(0)))
    us, ss, vhs = [u[:, :k]], [s[:k]], [vh[:k]]
    for delta in deltas:
        found = thin(delta - u[:, :k] @ u[:, :k].T @ delta)
        us.append(found[0][:, :own])
        ss.append(found[1][:own])
        vhs.append(found[2][:own])
    return torch.cat(ss).mean() * polar(torch.cat(us, 1)) @ polar(torch.cat(vhs))


REFERENCES: dict[str, Callable[[Tensor], Tensor]] = {"tsv_merging": tsv_merging, "iso_c": iso_c, "iso_cts": iso_cts}


def pool_of(base: Tensor, *deltas: Tensor) -> Models:
    """Models with one matrix and one bias, which is 0 in the base and 1 in the experts."""
    name = "encoder.layers.0.mlp.fc1"
    experts = {
        f"task{place}": {f"{name}.weight": base + delta, f"{name}.bias": torch.ones(len(base))}
        for place, delta in enumerate(deltas)
    }
    return {"_pretrained_": {f"{name}.weight": base, f"{name}.bias": torch.zeros(len(base))}, **experts}


def merged_delta(method: str, models: Models, **settings) -> Tensor:
    """Δ of the one matrix, float64."""
    name = "encoder.layers.0.mlp.fc1.weight"
    tensors = clipfuse.merge(models, method, scaling_factor=1.0, **settings).tensors
    return tensors[name].double() - models["_pretrained_"][name].double()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def near(found: Tensor, want: Tensor, tolerance: float = 1e-4) -> bool:
    return bool((found - want).norm() <= tolerance * want.norm())


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_of_a_model(models: Models, method: str):
    found = clipfuse.merge(models, method, scaling_factor=1.0).tensors
    for name, base in models["_pretrained_"].items():
        deltas = torch.stack([models[task][name].double() - base.double() for task in TASKS])
        want = REFERENCES[method](deltas) if base.ndim == 2 else deltas.mean(0)
        assert near(found[name].double() - base.double(), want), name


@pytest.mark.parametrize("fraction", [0.05, 0.33, 0.5, 1.0])
def test_iso_cts_with_other_shares(models: Models, fraction: float):
    name = "encoder.layers.0.mlp.fc2.weight"
    found = clipfuse.merge(models, "iso_cts", common_space_fraction=fraction).tensors[name]
    base = models["_pretrained_"][name].double()
    deltas = torch.stack([models[task][name].double() - base for task in TASKS])
    assert near(found.double() - base, iso_cts(deltas, fraction))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(384, 768), (768, 384), (512, 512)])
def test_matrices_of_a_real_size(method: str, shape: tuple[int, int]):
    """Task vectors that share some directions and whose spectra fall."""
    decay = (1 + torch.arange(min(shape)) / 8) ** -0.7
    ways = [[torch.linalg.qr(noise(size, min(shape), seed=seed))[0] for size in shape] for seed in range(4)]
    own = [(u * decay) @ v.T for u, v in ways[1:]]
    shared = (ways[0][0] * decay) @ ways[0][1].T
    models = pool_of(torch.zeros(shape), *(1e-3 * (shared + delta) for delta in own))
    experts = [model["encoder.layers.0.mlp.fc1.weight"].double() for model in list(models.values())[1:]]
    assert near(merged_delta(method, models), REFERENCES[method](torch.stack(experts)))


@pytest.mark.parametrize(
    ("rank", "experts", "fraction", "own"), [(768, 8, 0.8, 19), (50, 8, 0.8, 1), (768, 1, 0.8, 154), (44, 8, 0.001, 5)]
)
def test_own_directions(rank: int, experts: int, fraction: float, own: int):
    assert own_directions(rank, experts, fraction) == own


def test_half_directions_are_rounded_to_even():
    assert [own_directions(20, 8, 1 - left / 20) for left in (4, 12, 20)] == [0, 2, 2]


def test_iso_c_has_a_flat_spectrum(models: Models):
    found = clipfuse.merge(models, "iso_c").tensors
    for name, base in models["_pretrained_"].items():
        if base.ndim == 2:
            s = torch.linalg.svdvals(found[name].double() - base.double())
            assert s.max() - s.min() < 1e-4 * s.mean(), name


def test_one_expert_with_lambda_one_is_that_expert_of_tsv(models: Models):
    pair = {name: models[name] for name in ("_pretrained_", "signs")}
    base, want = flat(models["_pretrained_"]), flat(models["signs"])
    assert near(result(pair, "tsv_merging") - base, want - base)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(40, 60), (60, 40)])
def test_an_expert_equal_to_the_base_takes_no_part(method: str, shape: tuple[int, int]):
    """Its directions, which are arbitrary, do not turn those of the others."""
    tau = 1e-2 * noise(*shape)
    alone = merged_delta(method, pool_of(torch.zeros(shape), tau, torch.zeros(shape)))
    u, s, vh = thin(tau.double())
    if method == "tsv_merging":
        half = len(s) // 2
        assert near(alone, u[:, :half] * s[:half] @ vh[:half])
    else:
        assert alone.isfinite().all()
        assert numerical(alone) <= len(s)


def numerical(matrix: Tensor) -> int:
    s = torch.linalg.svdvals(matrix)
    return int((s > 1e-4 * s[0]).sum())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(40, 60), (60, 40)])
def test_equal_experts_give_one_of_them(method: str, shape: tuple[int, int]):
    """What they have in common to the bit counts once, and nothing arbitrary is added."""
    tau = 1e-2 * noise(*shape)
    found = merged_delta(method, pool_of(torch.zeros(shape), tau, tau, tau, tau))
    u, s, vh = thin(tau.double())
    if method == "tsv_merging":
        want = u[:, :10] * s[:10] @ vh[:10]
    elif method == "iso_c":
        want = 4 * s.mean() * u @ vh
    else:  # 32 common directions and twice 2 of each task's own, which are the same two
        want = (4 * s[:32].sum() + 4 * s[32:34].sum()) / 40 * u[:, :34] @ vh[:34]
    assert near(found, want)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(80, 120), (120, 80)])
def test_experts_of_low_rank_give_a_result_of_low_rank(method: str, shape: tuple[int, int]):
    taus = [1e-2 * noise(shape[0], 3, seed=seed) @ noise(3, shape[1], seed=seed + 9) for seed in (1, 2)]
    found = merged_delta(method, pool_of(torch.zeros(shape), *taus))
    assert found.isfinite().all()
    assert numerical(found) == 6


def test_the_recipe_counts_decompositions():
    models = random_models()
    matrices = sum(tensor.ndim == 2 for tensor in models["_pretrained_"].values())
    measured = clipfuse.merge(models, "tsv_merging").recipe["measured"]
    assert measured["spectra.factorisations"] == matrices * (len(TASKS) + 2)
    assert measured["spectra.fallback"] == 0
