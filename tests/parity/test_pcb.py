"""PCB-Merging against its published steps in float64."""

import pytest
from random_models import random_models
from references import result, split
from torch import Tensor


def minmax(rows: Tensor) -> Tensor:
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    return (rows - low) / (high - low)


@pytest.mark.parametrize("correlation", [0.0, 0.8])
@pytest.mark.parametrize("keep", [0.1, 0.6, 1.0])
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
    found = result(models, "pcb_merging", keep=keep, scaling_factor=1.0) - base
    size = (weights * clamped).sum(0) / weights.sum(0).clamp(min=1e-12)
    sure = weights.sum(0) > 1e-3  # where all weights are nearly zero, rounding decides on their ratios
    assert sure.double().mean() > min(keep, 0.9) / 2
    assert ((found - want).abs()[sure] <= 1e-4 * size[sure] + 2e-8 + 2**-22 * base[sure].abs()).all()
