"""Whether confidences are what they say: expected calibration error, and the temperature that mends them."""

from collections.abc import Iterator
from math import inf, isfinite, sqrt

import torch
from torch import Tensor

from clipfuse.errors import ConfigError, ModelError
from clipfuse.shapes import Bool, Float, Int

COLDEST, HOTTEST = 0.01, 100.0
"""Temperatures that are searched."""
TOLERANCE = 1e-10
"""Relative, of the temperature."""
ELEMENTS = 1 << 20
"""Logits whose float64 copies are held at a time."""


def expected_calibration_error(
    confidence: Float[Tensor, "image"], correct: Bool[Tensor, "image"], bins: int = 15
) -> float:
    """ECE = Σ_m |B_m| / n · |acc(B_m) − conf(B_m)|, in [0, 1], float64 (Naeini et al., 2015).

    B_m are the images whose confidence, the probability of the predicted label, is in ((m − 1) / bins, m / bins];
    a confidence of 0 goes to the first.

    Raises ConfigError where there are no images, or for confidences outside [0, 1].

    Source: Guo et al. (2017), On Calibration of Modern Neural Networks, eq. 3.
    """
    if not len(confidence):
        raise ConfigError("confidence: no images; calibration takes at least one")
    confidence = confidence.detach().double()
    low, high = map(float, confidence.aminmax())
    if not (low >= 0 and high <= 1 + 1e-6):  # softmax in float32 may end above 1
        raise ConfigError(f"confidence: found {low:g} to {high:g}; takes probabilities, in [0, 1]")
    edges = torch.arange(1, bins, dtype=torch.float64, device=confidence.device) / bins
    gaps = torch.bincount(torch.bucketize(confidence, edges), correct.double() - confidence, bins)
    return float(gaps.abs().sum()) / len(confidence)


@torch.no_grad()
def fit_temperature(logits: Float[Tensor, "image class"], labels: Int[Tensor, "image"]) -> float:
    """The T in [0.01, 100] that minimises the mean negative log-likelihood of softmax(logits / T).

    The loss is convex in 1/T. Newton's method on its derivative, within a bracket that shrinks at every step and is
    halved (in log T) where Newton would leave it or slows down; float64, to 1e-10 relative. About ten passes; a block
    of the logits is widened at a time.

    The bound is returned where the loss still falls there: 0.01 where every image is right (the loss has no minimum),
    100 where the labels are likelier under a uniform guess. 1 where no temperature makes a difference.

    Raises ConfigError where there are no images, ModelError for logits that are NaN or infinite.

    Source: Guo et al. (2017), On Calibration of Modern Neural Networks, section 4.2.
    """
    if not len(labels):
        raise ConfigError("logits: no images; a temperature is fitted to at least one")
    low, high = 1 / HOTTEST, 1 / COLDEST
    first, last = (slope(logits, labels, inverse)[0] for inverse in (low, high))
    if not (isfinite(first) and isfinite(last)):
        raise ModelError("logits: NaN or Inf found; a temperature takes finite ones")
    if first >= 0 or last <= 0:
        return 1.0 if first >= 0 and last <= 0 else HOTTEST if first >= 0 else COLDEST

    inverse, before = 1.0, high - low
    while True:
        steepness, curvature = slope(logits, labels, inverse)
        low, high = (inverse, high) if steepness < 0 else (low, inverse)
        found = inverse - steepness / curvature if curvature > 0 else inf
        if not low <= found <= high or abs(found - inverse) > before / 2:
            found = sqrt(low * high)
        before, inverse = abs(found - inverse), found
        if before <= TOLERANCE * inverse:
            return 1 / inverse


def slope(logits: Float[Tensor, "image class"], labels: Int[Tensor, "image"], inverse: float) -> tuple[float, float]:
    """First and second derivative of the mean loss by 1/T: mean and variance of the margins under softmax(logits/T)."""
    first = second = 0.0
    for rows in margins(logits, labels):
        chances = torch.softmax(rows * inverse, 1)
        means = (chances * rows).sum(1, keepdim=True)
        first += float(means.sum())
        second += float(rows.sub_(means).square_().mul_(chances).sum())
    return first / len(labels), second / len(labels)


def margins(
    logits: Float[Tensor, "image class"], labels: Int[Tensor, "image"]
) -> Iterator[Float[Tensor, "block class"]]:
    """Logits − the label's logit, a block of images at a time, float64; the label's own is exactly 0."""
    block = max(1, ELEMENTS // logits.shape[1])
    for rows, truth in zip(logits.split(block), labels.split(block), strict=True):
        rows = rows.double()
        yield rows - rows.gather(1, truth.long()[:, None])
