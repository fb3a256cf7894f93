"""Continual rules against float64 references: the published recursions, written with whole models and autograd."""

from typing import Any

import pytest
import torch
from random_models import SMALL, random_models
from references import Models, check, flat, result, split
from torch import Tensor

import clipfuse
from clipfuse.fusion.dop import balance

CONTINUAL = ["continual_average", "continual_task_arithmetic", "continual_ties", "dop", "opcm"]
WIDTH = SMALL.intermediate_size
LINEAR = ("_proj.weight", "fc1.weight", "fc2.weight")
Parameters = dict[str, Tensor]


@pytest.fixture(params=[0.0, 0.8], ids=["uncorrelated", "correlated"])
def models(request: pytest.FixtureRequest) -> Models:
    return random_models(request.param)


def task_vectors(models: Models) -> list[Parameters]:
    """τ by name, one an expert, float64."""
    base = models["_pretrained_"]
    return [{n: m[n].double() - base[n].double() for n in base} for k, m in models.items() if k != "_pretrained_"]


def norm(tensors: Parameters) -> float:
    return float(flat(tensors).norm())


def off(models: Models, delta: Parameters, method: str, **settings: Any) -> float:
    """‖found − wanted‖ / ‖wanted‖ of the merged task vector."""
    found = result(models, method, **settings) - flat(models["_pretrained_"])
    return float((found - flat(delta)).norm() / flat(delta).norm())


def opcm_step(merged: Tensor, tau: Tensor, alpha: float) -> Tensor:
    u, s, vh = torch.linalg.svd(merged, full_matrices=True)
    clear = int((s.cumsum(0) / s.sum() <= alpha).sum())
    inside = u.T @ tau @ vh.T
    inside.diagonal().fill_(0)
    inside[:clear, :clear] = 0
    return merged + u @ inside @ vh


@pytest.mark.parametrize(("correlation", "alpha"), [(0.0, 0.5), (0.8, 0.0), (0.8, 0.9)])
def test_opcm(correlation: float, alpha: float):
    """The paper's recursion, with λ_t at every step and full decompositions."""
    models = random_models(correlation)
    taus = task_vectors(models)
    delta, factor, norms = dict(taus[0]), 1.0, [norm(taus[0])]
    for tau in taus[1:]:
        for name, value in tau.items():
            total = factor * delta[name] + value
            delta[name] = opcm_step(factor * delta[name], value, alpha) if name.endswith(LINEAR) else total
        norms.append(norm(tau))
        factor = norm(delta) / (sum(norms) / len(norms))
        delta = {name: value / factor for name, value in delta.items()}
    assert off(models, delta, "opcm", alpha=alpha) < 1e-4
    found = result(models, "opcm", alpha=alpha) - flat(models["_pretrained_"])
    assert float(found.norm()) == pytest.approx(sum(norms) / len(norms), rel=1e-5)


def test_opcm_leaves_directions_without_a_singular_value_alone():
    """A first expert of rank 1 keeps the second clear of one direction, whatever basis its null space is given."""
    base = {name: torch.zeros_like(t) for name, t in random_models()["_pretrained_"].items()}
    generator = torch.Generator().manual_seed(1)
    u, v = (torch.nn.functional.normalize(torch.randn(n, generator=generator), dim=0) for n in (64, WIDTH))
    name, other = "encoder.layers.0.mlp.fc2.weight", torch.randn(64, WIDTH, generator=generator)
    experts = {"a": base | {name: 3 * torch.outer(u, v)}, "b": base | {name: other}, "c": base}
    found = clipfuse.merge({"_pretrained_": base, **experts}, "opcm", alpha=1.0).tensors[name]
    want = 3 * torch.outer(u, v) + other - torch.outer(u, v) * (u @ other @ v)
    torch.testing.assert_close(found / found.norm(), want / want.norm(), atol=1e-6, rtol=1e-4)


def dop_step(
    pair: tuple[Tensor, Tensor], steps: int, lr: float, alpha: float, ema: float, energy: float, space: str
) -> Tensor:
    """Adam on autograd's gradient of the losses as the paper writes them."""
    sides = []
    for tau in pair:
        u, s, vh = torch.linalg.svd(tau, full_matrices=False)
        n = int((s.cumsum(0) / s.sum() < energy).sum())
        sides.append((tau, u[:, :n], s[:n], vh[:n].T))
    delta, weights = (pair[0] + pair[1]) / 2, torch.tensor([alpha, 1 - alpha], dtype=torch.float64)
    mean, square = torch.zeros_like(delta), torch.zeros_like(delta)
    for step in range(1, steps + 1):
        gradients, losses = [], []
        for tau, u, s, v in sides:
            at = delta.clone().requires_grad_()
            left, right = s.diag() @ u.T @ (at - tau), (at - tau) @ v @ s.diag()
            loss = ("u" in space) * left.square().sum() + ("v" in space) * right.square().sum()
            gradients.append(torch.autograd.grad(loss, at)[0])
            losses.append(loss.detach())
        a, b = (g / loss for g, loss in zip(gradients, losses, strict=True))
        lengths = {c: float((c * a + (1 - c) * b).norm()) for c in (0.001, 0.999)}
        best = float(((b - a) * b).sum() / (a - b).square().sum())
        own = best if 0 < best < 1 else min(lengths, key=lambda c: lengths[c])
        weights = ema * weights + (1 - ema) * torch.tensor([own, 1 - own], dtype=torch.float64)
        gradient = weights[0] * gradients[0] + weights[1] * gradients[1]
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        delta = delta - lr * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    return delta


@pytest.mark.parametrize(
    ("correlation", "settings"),
    [
        (0.0, {}),
        (0.8, {"space": "u", "ema": 1.0}),
        (0.0, {"space": "v", "energy": 0.5}),
        (0.8, {"ema": 0.5, "alpha": 0.3}),
    ],
    ids=["published", "outputs", "inputs", "balanced"],
)
def test_dop(correlation: float, settings: dict[str, Any]):
    models = random_models(correlation)
    settings = {"steps": 8, "lr": 1e-4, **settings}
    full = {"alpha": 0.8, "ema": 0.999, "energy": 0.99999, "space": "uv", **settings}
    two = {name: models[name] for name in ("_pretrained_", "digits", "signs")}
    found = clipfuse.merge(two, "dop", **settings).tensors
    first, second = task_vectors(two)
    linear = [
        "encoder.layers.0.mlp.fc1.weight",
        "encoder.layers.0.mlp.fc2.weight",
        "encoder.layers.1.self_attn.q_proj.weight",
    ]
    want = {name: dop_step((first[name], second[name]), **full) for name in linear}
    rest = [name for name in found if not name.endswith(LINEAR)]
    want |= {name: (first[name] + second[name]) / 2 for name in rest}
    assert "embeddings.position_embedding.weight" in rest
    for name, delta in want.items():
        moved = found[name].double() - models["_pretrained_"][name].double()
        assert float((moved - delta).norm() / delta.norm()) < 1e-4, name


@pytest.mark.parametrize(
    ("first", "second", "share"),
    [((1.0, 0.0), (3.0, 1.0), 0.999), ((3.0, 1.0), (1.0, 0.0), 0.001), ((1.0, 0.0), (0.0, 2.0), 0.8), ((0.0, 0.0), (1.0, 1.0), 0.999)],
)  # fmt: skip
def test_dop_balances_gradients_to_their_shortest_sum(
    first: tuple[float, float], second: tuple[float, float], share: float
):
    a, b = (torch.tensor(gradient, dtype=torch.float64) for gradient in (first, second))
    found = balance(float(a @ a), float(a @ b), float(b @ b))
    assert found == pytest.approx(share)
    shares = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)[:, None]
    assert (found * a + (1 - found) * b).norm() <= (shares * a + (1 - shares) * b).norm(dim=1).min() + 1e-12


def test_dop_lowers_what_it_minimises(models: Models):
    two = {name: models[name] for name in ("_pretrained_", "digits", "signs")}
    name = "encoder.layers.0.self_attn.q_proj.weight"
    taus = [tau[name] for tau in task_vectors(two)]

    def loss(delta: Tensor) -> float:
        apart = [(tau.T @ (delta - tau)).norm() ** 2 + ((delta - tau) @ tau.T).norm() ** 2 for tau in taus]
        return float(0.8 * apart[0] + 0.2 * apart[1])

    losses = [loss((taus[0] + taus[1]) / 2)]
    for steps in (3, 12):
        found = clipfuse.merge(two, "dop", steps=steps, ema=1.0).tensors[name]
        losses.append(loss(found.double() - models["_pretrained_"][name]))
    assert losses[0] > losses[1] > losses[2]


def ties(pair: Tensor, keep: float, merge: str) -> tuple[Tensor, Tensor]:
    """TIES of two vectors, and the entries that float32 may decide otherwise."""
    d = pair.shape[1]
    rank = d - int(keep * d)
    floors = pair.abs().kthvalue(rank, dim=1, keepdim=True).values if rank else torch.zeros(2, 1, dtype=pair.dtype)
    near = ((pair.abs() - floors).abs() < 1e-8).any(0)
    trimmed = pair * (pair.abs() >= floors)
    total = trimmed.sum(0)
    near |= (total.abs() < 1e-8) & (trimmed != 0).any(0)
    sign = torch.where(total == 0, total.sign().sum().sign(), total.sign())
    agreeing = trimmed * (trimmed * sign > 0)
    merged = agreeing.sum(0)
    return (merged / (agreeing != 0).sum(0).clamp(min=1) if merge == "mean" else merged), near


@pytest.mark.parametrize(("correlation", "keep", "merge"), [(0.0, 0.05, "mean"), (0.8, 0.2, "sum"), (0.0, 1.0, "sum")])
def test_continual_ties(correlation: float, keep: float, merge: str):
    models = random_models(correlation)
    base, _, deltas = split(models)
    merged, near = deltas[0], torch.zeros_like(deltas[0], dtype=torch.bool)
    for tau in deltas[1:]:
        merged, closer = ties(torch.stack([merged, tau]), keep, merge)
        near |= closer
    found = result(models, "continual_ties", keep=keep, merge=merge)
    check(found, base, 0.3 * merged, 0.3 * deltas.abs().sum(0), near)


def test_continual_ties_as_published(models: Models):
    """θ_t = θ_{t−1} + λ·TIES(θ_{t−1} − θ0, τ_t), λ inside the recursion."""
    base, _, deltas = split(models)
    merged, near = 0.5 * deltas[0], torch.zeros_like(deltas[0], dtype=torch.bool)
    for tau in deltas[1:]:
        elected, closer = ties(torch.stack([merged, tau]), 0.2, "sum")
        merged, near = merged + 0.5 * elected, near | closer
    found = result(models, "continual_ties", scaling_factor=0.5, accumulate=0.5)
    check(found, base, merged, 2 * deltas.abs().sum(0), near)


def test_the_average_one_at_a_time_is_the_average(models: Models):
    base, experts, deltas = split(models)
    check(result(models, "continual_average"), experts.mean(0), torch.zeros(()), base.abs() + deltas.abs().mean(0))
    torch.testing.assert_close(
        result(models, "continual_average"), result(models, "simple_average"), atol=1e-7, rtol=1e-6
    )


def test_the_sum_one_at_a_time_is_task_arithmetic(models: Models):
    base, _, deltas = split(models)
    check(result(models, "continual_task_arithmetic"), base, 0.3 * deltas.sum(0), 0.3 * deltas.abs().sum(0))
    found, want = (result(models, m) for m in ("continual_task_arithmetic", "task_arithmetic"))
    torch.testing.assert_close(found, want, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("method", CONTINUAL)
def test_one_expert_with_lambda_one_is_that_expert(models: Models, method: str):
    found = result({name: models[name] for name in ("_pretrained_", "signs")}, method, scaling_factor=1.0)
    torch.testing.assert_close(found, flat(models["signs"]), atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("method", CONTINUAL)
@pytest.mark.parametrize("order", [("still", "signs", "same"), ("signs", "still", "still2")])
def test_experts_without_a_task_vector_and_equal_ones_give_numbers(method: str, order: tuple[str, ...]):
    models = random_models()
    models |= {"still": models["_pretrained_"], "still2": models["_pretrained_"], "same": models["signs"]}
    settings = {"steps": 3} if method == "dop" else {}
    chosen = {name: models[name] for name in ("_pretrained_", *order)}
    assert result(chosen, method, **settings).isfinite().all()
