"""Calibration error against its definition, temperatures against grids and known answers."""

import numpy as np
import pytest
import torch
from torch import Tensor

from clipfuse.errors import ConfigError, ModelError
from clipfuse.evaluate import calibration
from clipfuse.evaluate.calibration import expected_calibration_error, fit_temperature, slope


def drawn(count: int = 4000, classes: int = 10, scale: float = 2.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Float32 logits, and labels that are drawn with the chances that these logits say."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(count, classes, generator=generator)
    return logits, torch.multinomial(logits.double().softmax(1), 1, generator=generator)[:, 0]


def reference(confidence: Tensor, correct: Tensor, bins: int) -> float:
    """Guo et al. (2017), eq. 2 and 3, in words."""
    total, p, right = 0.0, confidence.double().numpy(), correct.numpy()
    for m in range(bins):
        inside = (p > m / bins) & (p <= (m + 1) / bins)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - p[inside].mean())
    return total


@pytest.mark.parametrize("bins", [1, 2, 10, 15, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_error_is_its_definition(bins: int, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(bins)
    confidence = torch.rand(1000, generator=generator, dtype=dtype).clamp_min(1e-3)
    correct = torch.rand(1000, generator=generator) < confidence**2
    found = expected_calibration_error(confidence, correct, bins)
    assert found == pytest.approx(reference(confidence, correct, bins), rel=1e-12)


def test_error_by_hand():
    # bins of a half: {0.3 wrong, 0.5 right} and {0.6 right, 0.8 wrong, 1.0 wrong}; 0.5 among the latter gives 0.26
    confidence = torch.tensor([0.3, 0.5, 0.6, 0.8, 1.0], dtype=torch.float64)
    correct = torch.tensor([False, True, True, False, False])
    want = 2 / 5 * abs(1 / 2 - 0.4) + 3 / 5 * abs(1 / 3 - 0.8)
    assert expected_calibration_error(confidence, correct, 2) == pytest.approx(want, rel=1e-13)


def test_edges_belong_to_the_bin_below():
    edges = torch.arange(1, 16, dtype=torch.float64) / 15
    confidence, correct = torch.cat([edges, edges - 1 / 30]), torch.arange(30) >= 15
    want = (1 - confidence[:15] - confidence[15:]).abs().sum() / 30  # one right and one wrong in each bin
    assert expected_calibration_error(confidence, correct) == pytest.approx(float(want), rel=1e-12)
    nothing = torch.zeros(4)
    assert expected_calibration_error(nothing, nothing.bool()) == 0, "a confidence of 0 has a bin"


def test_calibrated_confidences_have_hardly_an_error():
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(200_000, generator=generator, dtype=torch.float64)
    correct = torch.rand(200_000, generator=generator, dtype=torch.float64) < confidence
    assert expected_calibration_error(confidence, correct) < 0.005
    assert expected_calibration_error(confidence.sqrt(), correct) > 0.1


def test_error_refuses_what_is_no_confidence():
    right = torch.ones(2, dtype=torch.bool)
    for wrong in (73.0, -0.1, float("nan")):
        with pytest.raises(ConfigError, match="takes probabilities"):
            expected_calibration_error(torch.tensor([0.5, wrong]), right)
    with pytest.raises(ConfigError, match="no images"):
        expected_calibration_error(torch.empty(0), right[:0])


def mean_loss(logits: Tensor, labels: Tensor, temperature: float) -> float:
    return float(torch.nn.functional.cross_entropy(logits.double() / temperature, labels))


@pytest.mark.parametrize("factor", [0.2, 1.0, 3.0, 20.0])
def test_temperature_undoes_a_factor(factor: float):
    logits, labels = drawn(20_000)
    assert fit_temperature(logits, labels) == pytest.approx(1, rel=0.03)
    assert fit_temperature(factor * logits, labels) == pytest.approx(factor, rel=0.03)
    exact = fit_temperature(logits.double(), labels)
    assert fit_temperature(factor * logits.double(), labels) == pytest.approx(factor * exact, rel=1e-9)


@pytest.mark.parametrize("scale", [0.3, 1.7, 9.0])
def test_temperature_is_the_best_of_a_grid(scale: float):
    logits, labels = drawn(300, 5)
    logits = scale * logits
    found = fit_temperature(logits, labels)
    grid = np.exp(np.linspace(np.log(0.01), np.log(100), 2001))
    losses = [mean_loss(logits, labels, t) for t in grid]
    assert mean_loss(logits, labels, found) <= min(losses)
    assert abs(np.log(found / grid[np.argmin(losses)])) <= np.log(grid[1] / grid[0])


def test_slope_is_zero_at_the_optimum_and_nowhere_near():
    logits, labels = drawn(500)
    found = fit_temperature(logits, labels)
    inverse = torch.tensor(1 / found, dtype=torch.float64, requires_grad=True)
    torch.nn.functional.cross_entropy(logits.double() * inverse, labels).backward()
    assert inverse.grad is not None
    assert abs(float(inverse.grad)) < 1e-10
    below, above = (slope(logits, labels, (1 + step) / found)[0] for step in (-1e-6, 1e-6))
    assert below < -1e-8 < 1e-8 < above


def test_derivatives_are_those_of_autograd():
    logits, labels = drawn(50)

    def loss(inverse: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits.double() * inverse, labels)

    at = torch.tensor(0.7, dtype=torch.float64)
    want = torch.func.grad(loss)(at), torch.func.grad(torch.func.grad(loss))(at)
    assert slope(logits, labels, 0.7) == pytest.approx([float(w) for w in want], rel=1e-11)


def test_a_constant_per_row_changes_nothing():
    logits, labels = drawn(400)
    shifted = logits.double() + 1000 * torch.randn(400, 1, generator=torch.Generator().manual_seed(5))
    assert fit_temperature(shifted, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-9)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch):
    logits, labels = drawn(103)
    whole = fit_temperature(logits, labels)
    monkeypatch.setattr(calibration, "ELEMENTS", 70)
    assert fit_temperature(logits, labels) == pytest.approx(whole, rel=1e-9)


def test_temperatures_at_the_bounds():
    sure = 20 * torch.eye(6)
    assert fit_temperature(sure, torch.arange(6)) == 0.01, "all right: the loss falls to the end"
    assert fit_temperature(sure, torch.arange(6).roll(1)) == 100, "all wrong: a uniform guess is best"
    assert fit_temperature(torch.ones(4, 3), torch.tensor([0, 1, 2, 0])) == 1, "no temperature matters"
    assert fit_temperature(torch.randn(4, 1), torch.zeros(4, dtype=torch.long)) == 1, "one class"
    # softmax saturates at T = 1, so that its variance is 0 there: one of 10,001 is wrong, all by 800
    saturated, labels = torch.tensor([[800.0, 0.0]]).repeat(10_001, 1), (torch.arange(10_001) == 0).long()
    assert fit_temperature(saturated, labels) == pytest.approx(800 / np.log(10_000), rel=1e-9)
    almost = torch.cat([sure.repeat(2000, 1), -sure[:1]])
    labels = torch.cat([torch.arange(6).repeat(2000), torch.zeros(1, dtype=torch.long)])
    found = fit_temperature(almost, labels)
    assert 0.01 < found < 100
    assert abs(slope(almost, labels, 1 / found)[0]) < 1e-10


@pytest.mark.parametrize("power", [1, 3, 9])
def test_flat_optima_take_few_passes(monkeypatch: pytest.MonkeyPatch, power: int):
    """Newton alone takes longer, the higher the power, and at 1 hits the optimum in one step."""
    passes = []

    def steep(logits: Tensor, labels: Tensor, inverse: float) -> tuple[float, float]:
        passes.append(inverse)
        return (inverse - 0.37) ** power, power * (inverse - 0.37) ** (power - 1)

    monkeypatch.setattr(calibration, "slope", steep)
    assert fit_temperature(*drawn(3)) == pytest.approx(1 / 0.37, rel=1e-9)
    assert len(passes) <= (4 if power == 1 else 100)


@pytest.mark.parametrize("scale", [0.3, 1.0, 30.0])
def test_real_ones_take_about_ten_passes(monkeypatch: pytest.MonkeyPatch, scale: float):
    passes = []
    monkeypatch.setattr(calibration, "slope", lambda *given: passes.append(given) or slope(*given))
    logits, labels = drawn()
    fit_temperature(scale * logits, labels)
    assert len(passes) <= 15


@pytest.mark.parametrize("seed", range(20))
def test_any_logits_come_to_an_end(seed: int):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(7, 4, generator=generator) * 10 ** (4 * torch.rand(7, 1, generator=generator) - 1)
    labels = torch.randint(0, 4, (7,), generator=generator)
    found = fit_temperature(logits, labels)
    grid = np.exp(np.linspace(np.log(0.01), np.log(100), 401))
    assert mean_loss(logits, labels, found) <= min(mean_loss(logits, labels, t) for t in grid) * (1 + 1e-12)


def test_inputs_are_left_alone():
    logits, labels = drawn(100)
    logits = logits.double()
    before = logits.clone()
    fit_temperature(logits, labels)
    assert torch.equal(logits, before)


def test_what_cannot_be_calibrated():
    logits, labels = drawn(5)
    for wrong in (float("nan"), float("inf"), -float("inf")):
        broken = logits.clone()
        broken[3, 2] = wrong
        with pytest.raises(ModelError, match="NaN or Inf"):
            fit_temperature(broken, labels)
    with pytest.raises(ConfigError, match="no images"):
        fit_temperature(logits[:0], labels[:0])
