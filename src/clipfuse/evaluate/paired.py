"""Two models on the same images: who is right where, and whether the difference is more than chance."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, lgamma, log, sqrt
from statistics import NormalDist

import numpy as np

from clipfuse.errors import ConfigError
from clipfuse.evaluate.metrics import Z95
from clipfuse.shapes import Bool, Float, Int

Z80 = NormalDist().inv_cdf(0.8)
"""80 % quantile of the normal distribution."""
TIE = 1e-12
"""Relative; averages that differ by less are equal but for rounding."""
PLACES = 12
"""Decimals of an image's gain; shares that differ by less are equal but for rounding."""
GAINS = np.array([-1.0, 1.0, 0.0])
"""Of an image that only A, only B, or both or neither are right on."""

Outcome = Bool[np.ndarray, "_"] | Float[np.ndarray, "_"]
"""Of each image of one task: whether the model is right, or in which share of several conditions it is, in [0, 1]."""
Pair = tuple[Outcome, Outcome]
"""Outcomes of models A and B on the same images."""


@dataclass(frozen=True)
class Comparison:
    """Models A and B on the same images of one task."""

    n: int
    """Images."""
    both: int
    """Images that both are right on."""
    only_a: int
    only_b: int
    neither: int
    difference: float
    """Accuracy of B − accuracy of A."""
    p: float
    """Of the exact two-sided McNemar test."""
    interval: tuple[float, float]
    """95 % of the paired bootstrap's differences."""
    detectable: float
    """Smallest |difference| that the test finds in 80 % of such samples."""


@dataclass(frozen=True)
class AverageComparison:
    """Models A and B on the same images of several tasks, every task with the same weight."""

    tasks: int
    n: int
    """Images of all tasks."""
    difference: float
    """Macro average of B's accuracies − that of A's."""
    p: float
    """Of the sign-flip test; at least 1 / (resamples + 1)."""
    interval: tuple[float, float]
    """95 % of the stratified paired bootstrap's differences."""


def compare(
    right_a: Bool[np.ndarray, "image_a"],
    right_b: Bool[np.ndarray, "image_b"],
    seed: int = 0,
    resamples: int = 10_000,
) -> Comparison:
    """Accuracy of B − accuracy of A, with the test, the interval and the resolution that belong to it.

    The p value is McNemar's (1947), exact: see `mcnemar`. The interval is a percentile interval of the paired
    bootstrap: images are drawn with replacement, both models' answers together. The difference of such a sample depends
    on nothing but how many of its images only A, only B, or both or neither are right on, and these counts are
    multinomial. They are drawn directly, which is the bootstrap's exact distribution at a cost that does not depend on
    the images. Where the models agree everywhere the interval is (0, 0): a bootstrap knows no disagreement that it has
    not seen; `detectable` says what may have been missed.

    Raises ConfigError for lengths that differ, and where there are no images.
    """
    both, only_a, only_b, neither = agreement(right_a, right_b)
    n = len(right_a)
    return Comparison(
        n, both, only_a, only_b, neither,
        difference=(only_b - only_a) / n,
        p=mcnemar(only_a, only_b),
        interval=middle(resampled(np.random.default_rng(seed), GAINS, (only_a, only_b, both + neither), resamples)),
        detectable=detectable(n, only_a + only_b),
    )  # fmt: skip


def compare_average(pairs: Sequence[Pair], seed: int = 0, resamples: int = 10_000) -> AverageComparison:
    """Macro average of B's accuracies − that of A's, over tasks.

    The images are what is sampled. One that was scored several times, under several corruptions, is one image, and its
    outcome the share of times that the model was right: a pair of such shares a task, never a pair for each time.

    The interval is that of `compare`, stratified: every task is resampled by itself. Tasks are fixed: it says what
    other images of these tasks would have given, not what other tasks would have.

    The p value is that of a stratified sign-flip test. Under the null hypothesis that no task favours either model,
    each image on which they disagree is as likely to be A's as B's, so the images of a task that only B is right on are
    Binomial(disagreements, 1/2), which is simulated: p = (1 + samples at least as far from 0) / (1 + resamples), a
    valid test at any number of resamples and never 0 (Phipson & Smyth, 2010). With one task this is `mcnemar` but for
    the simulation. Of shares, B's − A's of each image keeps its size and flips its sign. Where the tasks differ in
    opposite directions and cancel, the flips spread wider than the data and the test errs on the side of no difference.

    Raises ConfigError for lengths that differ, a task without images, shares outside [0, 1], and where there are no
    tasks.
    """
    if not pairs:
        raise ConfigError("pairs: none found; an average takes at least one task")
    found = [gains(a, b, f"pair {number}: ") for number, (a, b) in enumerate(pairs, 1)]
    random = np.random.default_rng(seed)
    flips = random.spawn(1)[0]  # p does not depend on which model is called A

    drawn, flipped = np.zeros(resamples), np.zeros(resamples)
    for values, images in found:
        drawn += resampled(random, values, images, resamples)
        flipped += sign_flipped(flips, values, images, resamples)

    total = sum(float(values @ images) / int(images.sum()) for values, images in found)
    far = int(np.count_nonzero(np.abs(flipped) >= abs(total) * (1 - TIE)))
    return AverageComparison(
        tasks=len(pairs),
        n=sum(int(images.sum()) for _, images in found),
        difference=total / len(pairs),
        p=(1 + far) / (1 + resamples),
        interval=middle(drawn / len(pairs)),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for there being several, in the order given (Holm, 1979).

    The i-th smallest of m becomes max_{j ≤ i} min(1, (m − j + 1) p_(j)); rejecting those up to α keeps the chance of
    any false rejection within α, however the tests depend on one another.

    Raises ConfigError for a p value outside [0, 1].
    """
    found = np.asarray(p_values, dtype=np.float64)
    if not np.all((found >= 0) & (found <= 1)):
        raise ConfigError(f"p values: found {list(p_values)}; each must be in [0, 1]")
    order = np.argsort(found, kind="stable")
    steps = found[order] * np.arange(len(found), 0, -1)
    adjusted = np.empty_like(found)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted.tolist()


def mcnemar(only_a: int, only_b: int) -> float:
    """p = min(1, 2 P(X ≤ min(only_a, only_b))), X ~ Binomial(only_a + only_b, 1/2); 1 where the models never disagree.

    The largest term is taken from logarithms of factorials, the others from the ratios of neighbours, all ≤ 1: nothing
    overflows. Relative error at most 1e-7 up to 10⁶ disagreements, far less for few; 0 below the smallest float64.
    """
    fewer, n = min(only_a, only_b), only_a + only_b
    largest = exp(lgamma(n + 1) - lgamma(fewer + 1) - lgamma(n - fewer + 1) - n * log(2))
    k = np.arange(fewer, 0, -1.0)
    return min(1.0, 2 * largest * (1 + float(np.cumprod(k / (n - k + 1)).sum())))


def detectable(n: int, disagreements: int) -> float:
    """Smallest |difference| δ that McNemar's test at a two-sided 5 % finds with power 0.8 on n images.

    Connor (1987; the unconditional normal approximation, after Miettinen, 1968): n δ² = (z₀.₉₇₅ √ψ + z₀.₈ √(ψ − δ²))²,
    ψ the share of images on which the models disagree, here the observed one; solved for δ. A difference cannot be
    larger than that share, so where δ > ψ would come out, ψ = δ is put in: every disagreement goes one way. Without any
    disagreement that is about 7.85 / n. Infinite below six images, of which no exact test can reject.

    The exact test is a little weaker than the approximation: its power at δ is 0.72 to 0.8 from twenty images on, 0.75
    to 0.8 from sixty on.
    """
    if n < 6:
        return inf
    spread, share = n + Z80**2 - Z95**2, disagreements / n
    found = sqrt(share) * (Z95 * sqrt(n) + Z80 * sqrt(spread)) / (n + Z80**2)
    if 0 < found <= share:
        return found
    return 1 - ((sqrt(n * spread) - Z95 * Z80) / (n + Z80**2)) ** 2


def agreement(right_a: Bool[np.ndarray, "image_a"], right_b: Bool[np.ndarray, "image_b"]) -> tuple[int, int, int, int]:
    """Images that both, only A, only B, and neither are right on."""
    check_lengths(len(right_a), len(right_b))
    both, a, b = (int(np.count_nonzero(x)) for x in (right_a & right_b, right_a, right_b))
    return both, a - both, b - both, len(right_a) - a - b + both


def check_lengths(a: int, b: int, where: str = "") -> None:
    # callers' annotations give the two lengths two names, so that this error comes in tests too
    if a != b:
        raise ConfigError(f"{where}{a} and {b} images; models are compared on the same images")
    if not a:
        raise ConfigError(f"{where}no images; models are compared on at least one")


def gains(
    a: Bool[np.ndarray, "image_a"] | Float[np.ndarray, "image_a"],
    b: Bool[np.ndarray, "image_b"] | Float[np.ndarray, "image_b"],
    where: str,
) -> tuple[Float[np.ndarray, "value"], Int[np.ndarray, "value"]]:
    """Values of B's outcome − A's, the last of them 0, and how many images have each."""
    check_lengths(len(a), len(b), where)
    a, b = a.astype(np.float64), b.astype(np.float64)
    if not all(np.all((outcome >= 0) & (outcome <= 1)) for outcome in (a, b)):
        raise ConfigError(f"{where}outcomes are true or false, or shares in [0, 1]")
    values, images = np.unique(np.round(b - a, PLACES), return_counts=True)
    apart = values != 0
    return np.append(values[apart], 0.0), np.append(images[apart], images[~apart].sum())


def resampled(
    random: np.random.Generator, values: Float[np.ndarray, "value"], images: Sequence[int] | np.ndarray, resamples: int
) -> Float[np.ndarray, "resample"]:
    """Mean gains of samples of the images, with replacement; `images` have each of the gains `values`."""
    n = int(np.sum(images))
    return random.multinomial(n, np.asarray(images) / n, size=resamples) @ values / n


def sign_flipped(
    random: np.random.Generator, values: Float[np.ndarray, "value"], images: Int[np.ndarray, "value"], resamples: int
) -> Float[np.ndarray, "resample"]:
    """Mean gains where the sign of each image's is drawn anew."""
    found = np.zeros(resamples)
    for size in np.unique(np.abs(values[:-1])):
        count = int(images[np.abs(values) == size].sum())
        found += size * (2 * random.binomial(count, 0.5, resamples) - count)
    return found / int(images.sum())


def middle(differences: Float[np.ndarray, "resample"]) -> tuple[float, float]:
    """Percentile interval that holds 95 %."""
    low, high = np.quantile(differences, (0.025, 0.975))
    return float(low), float(high)
