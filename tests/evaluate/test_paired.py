"""Exact tests against scipy and the literature, intervals against resampling images one by one."""

from itertools import product
from math import ceil, inf, isclose

import numpy as np
import pytest
from scipy.stats import binom, binomtest

from clipfuse.errors import ConfigError
from clipfuse.evaluate.metrics import Z95
from clipfuse.evaluate.paired import Z80, compare, compare_average, detectable, holm, mcnemar

Answers = tuple[np.ndarray, np.ndarray]


def answers(both: int, only_a: int, only_b: int, neither: int, seed: int = 0) -> Answers:
    """Which images A and B are right on, shuffled."""
    kinds = np.repeat([3, 1, 2, 0], [both, only_a, only_b, neither])
    np.random.default_rng(seed).shuffle(kinds)
    return kinds % 2 == 1, kinds >= 2


def test_counts_and_difference():
    found = compare(*answers(50, 7, 19, 24))
    assert (found.n, found.both, found.only_a, found.only_b, found.neither) == (100, 50, 7, 19, 24)
    assert found.difference == 0.12
    assert found.p == mcnemar(7, 19)
    assert found.detectable == detectable(100, 26)


def test_models_change_places():
    a, b = answers(500, 70, 120, 310)
    there, back = compare(a, b), compare(b, a)
    assert (back.difference, back.p, back.detectable) == (-there.difference, there.p, there.detectable)
    assert there.interval[0] < there.difference < there.interval[1]
    assert back.interval == pytest.approx((-there.interval[1], -there.interval[0]), abs=0.003)


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [(1, 7, 2 * 9 / 2**8), (11, 1, 2 * 13 / 2**12), (12, 5, 0.1435), (6, 16, 2 * 110_056 / 2**22)],
)
def test_mcnemar_of_the_literature_and_by_hand(only_a: int, only_b: int, p: float):
    """The first are Bentur et al.'s counts, in Fagerland et al. (2013), table 1; the third are stat-tools.xyz's."""
    assert mcnemar(only_a, only_b) == pytest.approx(p, abs=5e-5 if only_a == 12 else 1e-15)


def test_mcnemar_is_the_binomial_test():
    for only_a, only_b in product(range(13), repeat=2):
        want = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
        assert mcnemar(only_a, only_b) == pytest.approx(want, rel=1e-12), (only_a, only_b)


@pytest.mark.parametrize(
    ("only_a", "only_b"),
    [(0, 1000), (10, 900), (4900, 5100), (499_000, 501_000), (490_000, 510_000), (497_000, 503_000)],
)
def test_mcnemar_of_many_disagreements(only_a: int, only_b: int):
    assert mcnemar(only_a, only_b) == pytest.approx(binomtest(only_a, only_a + only_b).pvalue, rel=1e-7, abs=0)


def test_mcnemar_at_its_ends():
    assert mcnemar(0, 0) == mcnemar(5, 5) == mcnemar(500_000, 500_000) == 1
    assert mcnemar(0, 10) == pytest.approx(2.0**-9, rel=1e-13)
    assert mcnemar(100_000, 900_000) == 0


def test_interval_is_that_of_resampling_images():
    a, b = answers(60, 10, 22, 28)
    random = np.random.default_rng(1)
    gains = b.astype(int) - a.astype(int)
    want = [gains[random.integers(0, len(a), len(a))].mean() for _ in range(20_000)]
    found = [compare(a, b, seed=seed, resamples=20_000).interval for seed in range(4)]
    # differences come in steps of 0.01; a quantile's Monte Carlo error is about 0.001
    assert np.mean(found, axis=0) == pytest.approx(np.quantile(want, (0.025, 0.975)), abs=0.0101)
    assert found[0] == compare(a, b, seed=0, resamples=20_000).interval, "same seed, same bits"


def test_spread_of_the_bootstrap_is_known():
    a, b = answers(30_000, 4_000, 6_000, 10_000)
    share, difference = 10_000 / 50_000, 2_000 / 50_000
    error = ((share - difference**2) / 50_000) ** 0.5
    found = compare(a, b, resamples=100_000).interval
    assert found == pytest.approx((difference - Z95 * error, difference + Z95 * error), abs=0.02 * error)


def test_interval_covers_what_it_should():
    random, covered = np.random.default_rng(0), 0
    chances, truth = [0.6, 0.06, 0.12, 0.22], 0.06
    for trial in range(1000):
        low, high = compare(*answers(*random.multinomial(400, chances)), seed=trial, resamples=2000).interval
        covered += low <= truth <= high
    assert 0.93 <= covered / 1000 <= 0.97, "95 ± 2 %, three standard errors"


def test_models_that_agree_everywhere():
    found = compare(*answers(30, 0, 0, 70))
    assert (found.difference, found.p, found.interval) == (0, 1, (0, 0))
    assert found.detectable == detectable(100, 0)


def connor(share: float, difference: float) -> float:
    """Images that Connor's (1987) formula asks for."""
    return ((Z95 * share**0.5 + Z80 * (share - difference**2) ** 0.5) / difference) ** 2


def test_detectable_is_connors_formula_solved():
    for n, disagreements in ((100, 20), (1000, 300), (10_000, 10_000), (50_000, 500)):
        assert connor(disagreements / n, detectable(n, disagreements)) == pytest.approx(n, rel=1e-9)
    for n in (6, 20, 1000):
        alone = detectable(n, 0)
        assert connor(alone, alone) == pytest.approx(n, rel=1e-9), "every disagreement goes one way"
    assert ceil(connor(0.45 + 0.05, 0.45 - 0.05)) == 23, "powerandsamplesize.com's example"
    assert detectable(22, 11) > 0.4 > detectable(24, 12)


def power(n: int, share: float, difference: float) -> float:
    """Of the exact test: chance of p ≤ 0.05, summed over the number of disagreements."""
    total, toward_b = 0.0, min(1.0, (share + difference) / (2 * share))
    for apart in range(n + 1):
        critical = max((k for k in range(apart // 2 + 1) if 2 * binom.cdf(k, apart, 0.5) <= 0.05), default=-1)
        if critical >= 0:
            found = binom.cdf(critical, apart, toward_b) + binom.sf(apart - critical - 1, apart, toward_b)
            total += binom.pmf(apart, n, share) * found
    return float(total)


@pytest.mark.parametrize(("n", "disagreements"), [(20, 0), (20, 12), (60, 3), (100, 25), (150, 0)])
def test_power_at_the_detectable_difference(n: int, disagreements: int):
    difference = detectable(n, disagreements)
    assert (0.75 if n >= 60 else 0.72) <= power(n, max(disagreements / n, difference), difference) <= 0.8


def test_detectable_at_its_ends():
    assert detectable(5, 3) == inf
    assert detectable(100_000, 0) == pytest.approx(7.85e-5, rel=1e-3)
    found = [detectable(500, k) for k in range(501)]
    assert found == sorted(found), "the more disagreement, the coarser"
    assert all(k / 500 >= d or isclose(d, found[0]) for k, d in enumerate(found)), "no difference without disagreement"


def test_average_of_one_task_is_that_task():
    a, b = answers(50, 9, 22, 19)
    one, average = compare(a, b), compare_average([(a, b)], resamples=10_000)
    assert (average.tasks, average.n, average.difference, average.interval) == (1, 100, one.difference, one.interval)
    assert one.p == pytest.approx(0.0294, abs=1e-4)
    assert average.p == pytest.approx(one.p, abs=4 * (one.p / 10_000) ** 0.5)


def test_average_weighs_tasks_not_images():
    large, small = answers(9_000, 200, 300, 500), answers(10, 3, 1, 6)
    found = compare_average([large, small])
    assert found.difference == pytest.approx((0.01 - 0.1) / 2)
    assert (found.tasks, found.n) == (2, 10_020)
    mirrored = compare_average([(b, a) for a, b in (large, small)])
    assert mirrored.difference == -found.difference
    assert mirrored.p == found.p


def test_p_of_the_average_is_the_sum_over_all_flips():
    tasks = [(12, 1, 4), (20, 2, 5), (15, 0, 3)]  # images, only A, only B
    counts = [(n - a - b, a, b, 0) for n, a, b in tasks]
    total = sum((b - a) / n for n, a, b in tasks)
    want = 0.0
    for flips in product(*(range(a + b + 1) for _, a, b in tasks)):
        shifted = sum((2 * f - a - b) / n for f, (n, a, b) in zip(flips, tasks, strict=True))
        chance = np.prod([binom.pmf(f, a + b, 0.5) for f, (_, a, b) in zip(flips, tasks, strict=True)])
        want += float(chance) * (abs(shifted) >= abs(total) - 1e-9)
    found = compare_average([answers(*count) for count in counts], resamples=200_000)
    assert 0.01 < want < 0.05
    assert found.p == pytest.approx(want, abs=4 * (want / 200_000) ** 0.5)


def test_interval_of_the_average_is_stratified():
    pairs = [answers(600, 80, 120, 200), answers(20, 4, 9, 17), answers(300, 0, 0, 100)]
    random = np.random.default_rng(3)
    gains = [b.astype(int) - a.astype(int) for a, b in pairs]
    want = [np.mean([g[random.integers(0, len(g), len(g))].mean() for g in gains]) for _ in range(10_000)]
    found = compare_average(pairs, resamples=100_000).interval
    assert found == pytest.approx(np.quantile(want, (0.025, 0.975)), abs=0.004)


def several(n: int, conditions: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which images A and B are right on (condition, image), where an image is easy or hard under all of them."""
    random = np.random.default_rng(seed)
    easy = random.random(n)
    return tuple(easy + random.normal(0, 0.2, (conditions, n)) > bar for bar in (0.45, 0.4))  # type: ignore[return-value]


def test_interval_of_shares_is_that_of_resampling_images_once_for_all_conditions():
    tasks = [several(300, 5, 0), several(120, 5, 1), several(200, 1, 2)]
    random = np.random.default_rng(4)
    want = []
    for _ in range(10_000):
        of_tasks = []
        for a, b in tasks:
            images = random.integers(0, a.shape[1], a.shape[1])
            of_tasks.append(
                np.mean([right[images].mean() - left[images].mean() for left, right in zip(a, b, strict=True)])
            )
        want.append(np.mean(of_tasks))
    found = compare_average([(a.mean(0), b.mean(0)) for a, b in tasks], resamples=50_000)
    assert found.n == 620
    assert found.difference == pytest.approx(np.mean([b.mean() - a.mean() for a, b in tasks]))
    width = found.interval[1] - found.interval[0]
    assert found.interval == pytest.approx(np.quantile(want, (0.025, 0.975)), abs=0.04 * width)


def test_images_under_several_conditions_are_not_more_images():
    a, b = answers(60, 10, 22, 28)
    once = compare_average([(a, b)])
    copies = compare_average([(np.mean([a] * 7, axis=0), np.mean([b] * 7, axis=0))])
    apart = compare_average([(a, b)] * 7)
    assert copies == once
    assert apart.interval[1] - apart.interval[0] < 0.5 * (once.interval[1] - once.interval[0]), "what must not be done"


def test_p_of_shares_is_the_sum_over_all_flips():
    gains = [np.array([3, 3, 2, 1, -1, 2, 0, 0, 3]) / 3, np.array([1, 2, 2, -1, 0]) / 3]
    pairs = [(np.maximum(-gain, 0), np.maximum(gain, 0)) for gain in gains]
    total = sum(gain.mean() for gain in gains)
    signs = np.array(list(product((-1, 1), repeat=9 + 5)))
    flipped = signs[:, :9] @ gains[0] / 9 + signs[:, 9:] @ gains[1] / 5
    want = float(np.mean(np.abs(flipped) >= total - 1e-9))
    found = compare_average(pairs, resamples=200_000)
    assert found.difference == pytest.approx(total / 2)
    assert 0.001 < want < 0.1
    assert found.p == pytest.approx(want, abs=4 * (want / 200_000) ** 0.5)


def test_rounding_does_not_break_ties():
    # 1/10 + 2/10 > 3/10 in float64, yet a flip that gives the latter is as far as the former
    pairs = [answers(7, 1, 2, 0), answers(8, 0, 2, 0)]
    assert 1 / 10 + 2 / 10 > 3 / 10
    assert compare_average(pairs, resamples=100_000).p == pytest.approx(2 * (1 / 32 + 3 / 32 + 2 / 32), abs=0.007)


def test_p_of_the_average_is_never_zero():
    assert compare_average([answers(0, 0, 500, 500)], resamples=999).p == 0.001
    assert compare_average([answers(5, 0, 0, 5)]).p == 1


@pytest.mark.parametrize(
    ("raw", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.50, 0.003, 0.32, 0.054, 0.0003], [0.64, 0.012, 0.64, 0.162, 0.0015]),
        ([0.01, 0.02, 0.03, 0.04], [0.04, 0.06, 0.06, 0.06]),
        ([0.9, 0.8], [1.0, 1.0]),
        ([0.03, 0.03, 0.03], [0.09, 0.09, 0.09]),
        ([0.2], [0.2]),
        ([], []),
    ],
)
def test_holm_by_hand_and_of_the_literature(raw: list[float], adjusted: list[float]):
    """The second is the example of pingouin's documentation."""
    assert holm(raw) == pytest.approx(adjusted, rel=1e-12)


def test_holm_rejects_as_the_step_down_does():
    random = np.random.default_rng(0)
    for _ in range(50):
        raw = (random.random(8) ** 3).tolist()
        rejected = set()
        for step, place in enumerate(sorted(range(8), key=raw.__getitem__)):
            if raw[place] > 0.05 / (8 - step):
                break
            rejected.add(place)
        assert {place for place, p in enumerate(holm(raw)) if p <= 0.05} == rejected


def test_what_cannot_be_compared():
    three, four = np.ones(3, bool), np.ones(4, bool)
    with pytest.raises(ConfigError, match="^3 and 4 images; models are compared on the same images$"):
        compare(three, four)
    with pytest.raises(ConfigError, match="^pair 2: 4 and 3 images"):
        compare_average([(three, three), (four, three)])
    with pytest.raises(ConfigError, match=r"^pair 1: outcomes are .* shares in \[0, 1\]$"):
        compare_average([(np.array([0.5, 1.5]), np.array([0.0, 1.0]))])
    with pytest.raises(ConfigError, match="no images"):
        compare(three[:0], three[:0])
    with pytest.raises(ConfigError, match="at least one task"):
        compare_average([])
    for wrong in (float("nan"), 1.1, -0.1):
        with pytest.raises(ConfigError, match="must be in"):
            holm([0.1, wrong])
