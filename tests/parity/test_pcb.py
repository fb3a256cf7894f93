"""PCB-Merging against its published steps in float64."""

import pytest
import torch
from random_models import random_models
from references import check, flat, result, split
from torch import Tensor

Models = dict[str, dict[str, Tensor]]


def minmax(rows: Tensor) -> Tensor:
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    return (rows - low) / (high - low)


@pytest.mark.parametrize("correlation", [0.0, 0.8])
@pytest.mark.parametrize("keep", [0.02, 0.1, 0.6, 1.0])
def test_pcb_merging(correlation: float, keep: float):
    models = random_models(correlation)
    base, _, deltas = split(models)
    count, size = deltas.shape
    order = deltas.abs().sort(1).values
    low, high = order[:, int(size * 1e-4), None], order[:, int(size * (1 - 1e-4) - 1), None]
    clamped = deltas.abs().clamp(low, high)
    scores = (count * minmax(clamped) ** 2).exp() * (deltas * deltas.sum(0)).tanh()
    floor = scores.sort(1).values[:, int(size * (1 - keep)), None]
    weights = minmax(scores.clamp(min=floor))
    want = (weights * clamped * deltas.sign()).sum(0) / weights.sum(0).clamp(min=1e-12)
    assert keep == 1 or (want == 0).any()
    size = 2 * 1.2 * deltas.abs().sum(0)  # exp, tanh and two quotients are in every weight
    check(result(models, "pcb_merging", keep=keep), base, 1.2 * want, size)


@pytest.mark.parametrize("size", [1e-3, 0.05, 1.0])
def test_tanh_counts_where_task_vectors_are_large(size: float):
    """Products of task vectors from 10⁻⁶ to 10: of small ones tanh is the number itself."""
    models = random_models(0.5, spread=size)
    base, _, deltas = split(models)
    order = deltas.abs().sort(1).values
    d = deltas.shape[1]
    clamped = deltas.abs().clamp(order[:, int(d * 1e-4), None], order[:, int(d * (1 - 1e-4) - 1), None])
    scores = (3 * minmax(clamped) ** 2).exp() * (deltas * deltas.sum(0)).tanh()
    weights = minmax(scores.clamp(min=scores.sort(1).values[:, int(d * 0.9), None]))
    want = (weights * clamped * deltas.sign()).sum(0) / weights.sum(0).clamp(min=1e-12)
    check(result(models, "pcb_merging"), base, 1.2 * want, 1.2 * deltas.abs().sum(0))


def test_one_expert_keeps_its_own_entries():
    models = random_models()
    pair = {name: models[name] for name in ("_pretrained_", "signs")}
    base, _, deltas = split(pair)
    found = result(pair, "pcb_merging", scaling_factor=1.0, keep=0.1) - base
    kept = found != 0
    assert 0.09 < kept.double().mean() < 0.11
    limit = deltas[0].abs().sort().values[int(deltas.shape[1] * (1 - 1e-4) - 1)]
    torch.testing.assert_close(found[kept], deltas[0].clamp(-limit, limit)[kept], atol=2e-7, rtol=1e-5)


def test_experts_that_stand_still_or_agree():
    models = random_models()
    base = models["_pretrained_"]
    still = {"_pretrained_": base, "a": models["signs"], "b": base}
    alone = {"_pretrained_": base, "a": models["signs"]}
    assert result(still, "pcb_merging").isfinite().all()
    step = {name: tensor + 0.5 for name, tensor in base.items()}
    equal = {"_pretrained_": base, "a": step, "b": step}
    assert result(equal, "pcb_merging").isfinite().all()
    both = result(still, "pcb_merging", scaling_factor=1.0) - flat(base)
    one = result(alone, "pcb_merging", scaling_factor=1.0) - flat(base)
    assert abs(float((both != 0).double().mean() - (one != 0).double().mean())) < 1e-3
