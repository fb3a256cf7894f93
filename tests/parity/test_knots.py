"""KnOTS against singular value decompositions in float64, and what must hold of it whatever they say."""

import pytest
import torch
from random_models import random_models
from references import Models, check, flat, result, split
from torch import Tensor

import clipfuse
from clipfuse.fusion.knots import left_directions

TASKS = ("digits", "signs", "roads")


@pytest.fixture(params=[0.0, 0.8], ids=["uncorrelated", "correlated"])
def models(request: pytest.FixtureRequest) -> Models:
    return random_models(request.param)


def at_zero(deltas: dict[str, dict[str, Tensor]]) -> Models:
    """Experts with these task vectors, exactly: the base is zero."""
    base = {name: torch.zeros_like(tensor) for name, tensor in random_models()["_pretrained_"].items()}
    return {"_pretrained_": base, **{task: {**base, **tensors} for task, tensors in deltas.items()}}


def low_rank(rank: int = 3) -> Models:
    """Experts whose matrices moved by updates of that rank, as LoRA leaves them, and whose other parameters stayed."""
    shapes = {n: t.shape for n, t in random_models()["_pretrained_"].items() if t.ndim == 2}
    generator = torch.Generator().manual_seed(5)

    def update(rows: int, columns: int) -> Tensor:
        b, a = (torch.randn(n, rank, generator=generator) for n in (rows, columns))
        return 0.01 * b @ a.T

    return at_zero({task: {n: update(*shape) for n, shape in shapes.items()} for task in TASKS})


def ties(vectors: Tensor, keep: float, merge: str) -> Tensor:
    """TIES of (task, d) vectors."""
    d = vectors.shape[1]
    if keep < 1:
        vectors = vectors * (vectors.abs() >= vectors.abs().kthvalue(d - int(keep * d), dim=1, keepdim=True).values)
    total = vectors.sum(0)
    sign = torch.where(total == 0, total.sign().sum().sign(), total.sign())
    agreeing = vectors * (vectors * sign > 0)
    return agreeing.sum(0) / ((agreeing != 0).sum(0).clamp(min=1) if merge == "mean" else 1)


def reference(models: Models, keep: float, merge: str) -> tuple[dict[str, Tensor], int]:
    """Δ of KnOTS with ties_merging, and the directions that it keeps."""
    base, turned, back, kept = models["_pretrained_"], [], {}, 0
    for name in sorted(base):
        deltas = torch.stack([models[task][name].double() - base[name].double() for task in TASKS])
        if deltas.ndim == 3:
            u, s, vh = torch.linalg.svd(torch.cat(list(deltas), 1), full_matrices=False)
            u, s, vh = u[:, s > 1e-5], s[s > 1e-5], vh[s > 1e-5]
            kept += len(s)
            back[name] = u
            deltas = torch.stack(list((s[:, None] * vh).chunk(len(TASKS), 1)))
        turned.append(deltas)
    merged = ties(torch.cat([d.flatten(1) for d in turned], 1), keep, merge)
    found, at = {}, 0
    for name, deltas in zip(sorted(base), turned, strict=True):
        part = merged[at : at + deltas[0].numel()].view(deltas[0].shape)
        at += deltas[0].numel()
        found[name] = back[name] @ part if name in back else part
    return found, kept


def found(models: Models, **settings) -> Tensor:
    """Δ of a merge with λ = 1, flat."""
    base, _, _ = split(models)
    return result(models, "knots", scaling_factor=1.0, **settings) - base


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(("keep", "merge"), [(0.05, "sum"), (0.2, "sum"), (0.2, "mean"), (1.0, "mean")])
def test_ties_in_the_shared_basis(models: Models, keep: float, merge: str):
    want, _ = reference(models, keep, merge)
    size, left, flipped = float(flat(want).norm()), 0.0, 0
    parts = found(models, keep=keep, merge=merge).split([want[name].numel() for name in sorted(want)])
    for name, part in zip(sorted(want), parts, strict=True):
        error = (part.view(want[name].shape) - want[name]).view(len(want[name]), -1).norm(dim=0)
        flipped += int((error > 2e-6 * size).sum())
        left += float(error[error <= 2e-6 * size].square().sum())
    assert flipped <= 1, "an entry whose size is the trimming floor's to float32 may be kept or not: it fills a column"
    assert left**0.5 < 2e-6 * size


@pytest.mark.parametrize("keep", [0.2, 0.6])
def test_directions_that_no_expert_has_do_not_count(keep: float):
    """Rank 3 times three experts: a share of all entries of the matrices would keep everything."""
    models = low_rank()
    want, kept = reference(models, keep, "sum")
    measured = clipfuse.merge(models, "knots", keep=keep).recipe["measured"]
    matrices = [t for t in models["_pretrained_"].values() if t.ndim == 2]
    assert kept == 9 * len(matrices)
    assert measured == {"knots.directions": kept, "knots.of": sum(min(len(t), 3 * t.shape[1]) for t in matrices)}
    assert far(found(models, keep=keep), flat(want)) < 2e-6


@pytest.mark.parametrize("settings", [{"rule": "task_arithmetic"}, {"keep": 1.0}])
def test_singular_values_are_cut(settings):
    """Entries alone in their row and column are singular values."""
    name = "encoder.layers.0.mlp.fc2.weight"
    delta = torch.zeros(random_models()["_pretrained_"][name].shape)
    delta[0, 5], delta[3, 7], delta[9, 2] = 0.5, 1.02e-5, 0.98e-5
    models = at_zero({"a": {name: delta}, "b": {}})
    merged = clipfuse.merge(models, "knots", scaling_factor=1.0, **settings).tensors
    delta[9, 2] = 0
    torch.testing.assert_close(merged[name], delta, atol=1e-10, rtol=1e-6)
    assert not any(tensor.any() for other, tensor in merged.items() if other != name)


def test_task_arithmetic_is_the_sum(models: Models):
    base, _, deltas = split(models)
    merged = result(models, "knots", rule="task_arithmetic", scaling_factor=0.4)
    check(merged, base, 0.4 * deltas.sum(0), 0.4 * deltas.abs().sum(0))


@pytest.mark.parametrize("settings", [{"rule": "task_arithmetic"}, {"keep": 1.0}, {"keep": 1.0, "merge": "mean"}])
def test_one_expert_with_lambda_one_is_that_expert(models: Models, settings):
    pair = {name: models[name] for name in ("_pretrained_", "signs")}
    merged = result(pair, "knots", scaling_factor=1.0, **settings)
    torch.testing.assert_close(merged, flat(models["signs"]), atol=1e-7, rtol=1e-6)


def test_what_is_no_matrix_is_merged_as_it_is():
    base = random_models()["_pretrained_"]
    moved = {
        task: {n: models[n] - base[n] for n in base if base[n].ndim != 2}
        for task, models in random_models().items()
        if task != "_pretrained_"
    }
    models = at_zero(moved)
    ties = result({n: {k: t for k, t in m.items() if base[k].ndim != 2} for n, m in models.items()}, "ties_merging")
    knots = clipfuse.merge(models, "knots").tensors
    assert torch.equal(flat({n: t for n, t in knots.items() if base[n].ndim != 2}), ties)
    assert not any(t.any() for n, t in knots.items() if base[n].ndim == 2)


def test_matrices_that_did_not_move_and_nothing_else():
    base = {n: t for n, t in random_models()["_pretrained_"].items() if t.ndim == 2}
    for settings in ({}, {"keep": 1.0}, {"rule": "task_arithmetic"}):
        merged = clipfuse.merge({"_pretrained_": base, "a": base, "b": base}, "knots", **settings).tensors
        assert all(torch.equal(merged[name], base[name]) for name in base)


def test_a_rotation_of_the_outputs_rotates_the_result():
    """The basis follows the experts; trimming entry by entry in the given one would not."""
    name = "encoder.layers.1.mlp.fc2.weight"
    models = low_rank(8)
    turn = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)).Q
    turned = {t: {n: (turn @ w.double()).float() if n == name else w for n, w in m.items()} for t, m in models.items()}
    plain, after = (clipfuse.merge(m, "knots", scaling_factor=1.0).tensors for m in (models, turned))
    assert far(after[name].double(), turn @ plain[name].double()) < 2e-3
    ties, other = (clipfuse.merge(m, "ties_merging", scaling_factor=1.0).tensors for m in (models, turned))
    assert far(other[name].double(), turn @ ties[name].double()) > 0.1


@pytest.mark.parametrize("shape", [(3, 20, 30), (3, 90, 30), (3, 100, 30), (2, 300, 400)], ids=str)
def test_left_directions_are_those_of_the_svd(shape: tuple[int, int, int]):
    deltas = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    deltas[:, -2:] = 0
    basis = left_directions(deltas)
    u, s, _ = torch.linalg.svd(torch.cat(list(deltas), 1).double(), full_matrices=False)
    u = u[:, s > 1e-5]
    assert basis.shape == u.shape
    torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close((basis.T @ u).abs().amax(0), torch.ones(u.shape[1], dtype=torch.float64))


@pytest.mark.parametrize("settings", [{"rule": "magmax"}, {"keep": 0.0}, {"keep": 20}, {"merge": "max"}], ids=str)
def test_refuses(models: Models, settings):
    with pytest.raises(clipfuse.ClipfuseError, match=rf"method\.{next(iter(settings))}"):
        clipfuse.merge(models, "knots", **settings)
