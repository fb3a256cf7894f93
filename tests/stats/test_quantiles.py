"""Order statistics against sorting everything."""

from collections.abc import Iterable

import pytest
import torch
from random_models import random_models
from torch import Tensor

from clipfuse.errors import PoolError
from clipfuse.pool import Leaf, PoolView, pool_from_memory
from clipfuse.stats import quantiles
from clipfuse.stats.quantiles import Rows, entries, kth_magnitudes, magnitudes, order_statistics

Models = dict[str, dict[str, Tensor]]
SIZE = sum(tensor.numel() for tensor in random_models()["_pretrained_"].values())
RANKS = [1, 2, SIZE // 10_000, SIZE // 3, SIZE // 2, SIZE // 2 + 1, SIZE - SIZE // 5, SIZE - 1, SIZE]


@pytest.fixture(params=[0.0, 0.8], ids=["uncorrelated", "correlated"])
def models(request: pytest.FixtureRequest) -> Models:
    return random_models(request.param)


@pytest.fixture
def sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few numbers in a sample, and so little room, that a model of 165,000 parameters is as hard as a large one."""
    monkeypatch.setattr(quantiles, "SAMPLE", 1 << 10)
    monkeypatch.setattr(quantiles, "LIMIT", 0.03)


def values(leaf: Leaf) -> Tensor:
    return leaf.deltas


def signed(leaf: Leaf) -> Tensor:
    return leaf.deltas * leaf.deltas.sum(0)


def sorted_rows(view: PoolView, rows: Rows) -> Tensor:
    return torch.cat([rows(leaf).flatten(1) for leaf in view], 1).sort(1).values


def check(view: PoolView, rows: Rows, ranks: list[int]) -> None:
    want = sorted_rows(view, rows)[:, [rank - 1 for rank in ranks]].T
    assert torch.equal(order_statistics(view, rows, ranks), want)


def filled(numbers: Iterable[Tensor]) -> PoolView:
    """A view of experts whose task vectors are these flat numbers, in the order of the parameters' names."""
    base = {name: torch.zeros_like(t) for name, t in random_models()["_pretrained_"].items()}
    experts = {}
    for key, flat in zip("abcdefg", numbers, strict=False):
        parts = flat.float().split([base[name].numel() for name in sorted(base)])
        experts[key] = {n: part.view(base[n].shape) for n, part in zip(sorted(base), parts, strict=True)}
    return PoolView(pool_from_memory({"_pretrained_": base, **experts}))


def full_passes(view: PoolView, rows: Rows, ranks: list[int], monkeypatch: pytest.MonkeyPatch) -> int:
    """Looks at everything that the answers took."""
    looks: list[int] = []
    look = quantiles.look
    monkeypatch.setattr(quantiles, "look", lambda *args: (looks.append(1), look(*args)))
    order_statistics(view, rows, ranks)
    return len(looks)


@pytest.mark.parametrize("rows", [magnitudes, values, signed])
def test_order_statistics_are_exact(models: Models, rows: Rows):
    check(PoolView(pool_from_memory(models)), rows, RANKS)


@pytest.mark.usefixtures("sparse")
@pytest.mark.parametrize("rows", [magnitudes, values, signed])
def test_and_from_a_sparse_sample(models: Models, rows: Rows):
    check(PoolView(pool_from_memory(models)), rows, RANKS)


@pytest.mark.parametrize("keep", [1e-7, 1e-5, 0.001, 0.2, 0.5, 0.999, 1.0])
def test_kth_magnitudes(models: Models, keep: float):
    view = PoolView(pool_from_memory(models))
    rank = entries(view) - int(keep * entries(view))
    want = sorted_rows(view, magnitudes)[:, rank - 1] if rank else torch.zeros(3)
    assert torch.equal(kth_magnitudes(view, keep), want)


@pytest.mark.usefixtures("sparse")
def test_one_pass_is_enough_where_slices_begin_like_they_go_on(models: Models, monkeypatch: pytest.MonkeyPatch):
    assert full_passes(PoolView(pool_from_memory(models)), values, [1, SIZE // 10_000, SIZE], monkeypatch) == 1


def test_short_parameters_count_by_their_length(models: Models, monkeypatch: pytest.MonkeyPatch):
    """Biases and norms, all much larger than the rest, are most of the slices but few of the entries."""
    monkeypatch.setattr(quantiles, "SAMPLE", 1 << 14)
    for task in ("digits", "signs", "roads"):
        for name, tensor in models["_pretrained_"].items():
            if tensor.ndim == 1:
                models[task][name] = tensor + 5.0
    view = PoolView(pool_from_memory(models))
    check(view, magnitudes, [SIZE // 2])
    assert full_passes(view, magnitudes, [SIZE // 2], monkeypatch) == 1


@pytest.mark.usefixtures("sparse")
def test_a_misleading_sample_costs_passes_not_truth(monkeypatch: pytest.MonkeyPatch):
    """Slices begin with numbers that stand nowhere else."""
    noise = torch.randn(SIZE, generator=torch.Generator().manual_seed(0))
    view = filled([noise, noise.abs(), -noise.abs()])
    for tensors in view.pool.experts.values():
        for tensor in tensors.values():
            tensor.view(-1)[:600] += 50.0
            tensor.view(-1)[65_536 : 65_536 + 600] += 50.0
    check(view, values, RANKS)
    assert 1 < full_passes(view, values, [SIZE // 2], monkeypatch) <= 3


@pytest.mark.usefixtures("sparse")
@pytest.mark.parametrize("seed", range(6))
def test_numbers_that_stand_there_many_times(seed: int):
    """Zeros, a few other numbers, halves of a float16, infinitesimals, and numbers of every size."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(SIZE, generator=draw)
    few = torch.randint(-2, 3, (SIZE,), generator=draw).float()
    rows = [
        torch.zeros(SIZE),
        few,
        noise * (torch.rand(SIZE, generator=draw) < 0.4),
        noise.bfloat16().float(),
        torch.where(noise > 0, few, noise * 1e-42),
        noise * 10 ** torch.randint(-37, 38, (SIZE,), generator=draw).double(),
        torch.where(few == 0, 1.0, 1 + noise * 1e-6),
    ]
    ranks = torch.randint(1, SIZE + 1, (5,), generator=draw).tolist()
    check(filled(rows), values, [*ranks, 1, SIZE])


@pytest.mark.usefixtures("sparse")
def test_whatever_the_samples_say(monkeypatch: pytest.MonkeyPatch):
    """Windows halve what is left when samples keep on being wrong."""
    noise = torch.randn(SIZE, generator=torch.Generator().manual_seed(1))
    wrong = torch.full((2, 1000), 77.0).numpy()
    monkeypatch.setattr(quantiles, "beginnings", lambda view, rows: wrong)
    monkeypatch.setattr(quantiles, "scattered", lambda view, rows: wrong)
    check(filled([noise, noise * 1e-30]), values, [SIZE // 7, SIZE - 3])


def test_zero_is_positive():
    half = torch.zeros(SIZE)
    half[::2] = -1.0
    found = order_statistics(filled([half]), lambda leaf: leaf.deltas.relu().neg(), [1, SIZE])
    assert found.signbit().tolist() == [[False], [False]]


@pytest.mark.usefixtures("sparse")
def test_through_an_edit_of_whole_matrices(models: Models):
    view = PoolView(pool_from_memory(models)).through([lambda leaf: leaf.deltas * (leaf.deltas > 0.004)], "matrix")
    check(view, magnitudes, RANKS)


def test_task_vectors_are_left_alone(models: Models):
    kept = {n: torch.randn(3, *t.shape) for n, t in models["_pretrained_"].items()}
    again = {n: t.clone() for n, t in kept.items()}
    kth_magnitudes(PoolView(pool_from_memory(models)).through([lambda leaf: kept[leaf.name]], "leaf"), 0.2)
    assert all(torch.equal(kept[name], again[name]) for name in kept)


@pytest.mark.usefixtures("sparse")
@pytest.mark.parametrize("where", [slice(None), slice(70_000, 70_001)])
def test_nan_is_named(where: slice):
    noise = torch.randn(SIZE, generator=torch.Generator().manual_seed(2))
    marked = noise.clone()
    marked[where] = 9.0
    view = filled([noise, marked])
    with pytest.raises(PoolError, match="NaN"):
        order_statistics(view, lambda leaf: torch.where(leaf.deltas == 9.0, torch.nan, leaf.deltas), [SIZE])
