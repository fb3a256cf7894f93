"""The seven corruptions of the robustness tables in the literature on merging CLIP, from NumPy and Pillow.

Constants are those of ImageNet-C (Hendrycks and Dietterich, ICLR 2019, arXiv:1903.12261, and their published code),
made for 224 × 224 pixels, in five severities. Values are cut to 8 bits as there, downwards, unless a docstring says
otherwise. Random numbers are each image's own, so that no order or number of images changes them.

FusionBench's own file of these seven (dataset/image_corruption/make_corruption.py) has the weaker constants that the
same authors made for 32 × 32 pixels (CIFAR-10-C): a severity here is not one of there.
"""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from typing import TypeAlias

import numpy as np
from PIL import Image

from clipfuse.errors import TaskError, unknown
from clipfuse.shapes import Bool, Float, UInt8

Pixels: TypeAlias = UInt8[np.ndarray, "height width 3"]
SEVERITIES = range(1, 6)
SMALLEST = 8
"""Pixels of the shortest side that there must be."""


def corrupt(pixels: Pixels, name: str, severity: int, seed: Sequence[int] | int) -> Pixels:
    """One image, corrupted.

    Args:
        pixels: RGB values.
        name: A key of `CORRUPTIONS`, or what `find_corruption` takes for one.
        severity: From 1 to 5.
        seed: Not negative; the same numbers give the same bits.

    Raises:
        TaskError: an unknown corruption or severity, or an image smaller than 8 × 8.
    """
    if severity not in SEVERITIES:
        raise TaskError(f"severity {severity} of {name}: takes a whole number from 1 to 5")
    if min(pixels.shape[:2]) < SMALLEST:
        size = " × ".join(map(str, pixels.shape[:2]))
        raise TaskError(f"{name} of an image of {size}: takes at least {SMALLEST} × {SMALLEST} pixels")
    sequence = np.random.SeedSequence(seed if isinstance(seed, int) else list(seed))
    return CORRUPTIONS[find_corruption(name)](pixels, severity, np.random.Generator(np.random.PCG64(sequence)))


def find_corruption(name: str) -> str:
    """The name that is meant: `JPEG`, `jpeg-compression` and `jpeg` are `jpeg_compression`.

    Raises:
        TaskError: no corruption is called so.
    """
    folded = name.strip().lower().replace("-", "_").replace(" ", "_")
    folded = ALIASES.get(folded, folded)
    if folded not in CORRUPTIONS:
        raise TaskError(unknown("corruption", name, CORRUPTIONS))
    return folded


def contrast(pixels: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """(x − mean) · c + mean with the mean of each channel; c = 0.4, 0.3, 0.2, 0.1, 0.05."""
    c = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    means = pixels.mean(axis=(0, 1))
    return eight_bits((pixels - means) * c + means)


def gaussian_noise(pixels: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """x + 255 · N(0, c²), each value by itself; c = 0.08, 0.12, 0.18, 0.26, 0.38."""
    c = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    return eight_bits(pixels + random.normal(scale=255 * c, size=pixels.shape))


def impulse_noise(pixels: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """A share c of the values, each channel by itself, becomes 0 or 255 alike; c = 0.03, 0.06, 0.09, 0.17, 0.27."""
    c = (0.03, 0.06, 0.09, 0.17, 0.27)[severity - 1]
    draws = random.random(pixels.shape, dtype=np.float32)
    return np.where(draws < c, np.where(draws < c / 2, np.uint8(0), np.uint8(255)), pixels)


def jpeg_compression(pixels: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """Pillow's JPEG of quality 25, 18, 15, 10, 7 and back."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=(25, 18, 15, 10, 7)[severity - 1])
    return np.array(Image.open(file))


def pixelate(pixels: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """Pillow's box resize of both sides to ⌊c · side⌋ and back; c = 0.6, 0.5, 0.4, 0.3, 0.25."""
    c = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    height, width = pixels.shape[:2]
    small = Image.fromarray(pixels).resize((int(width * c), int(height * c)), Image.Resampling.BOX)
    return np.array(small.resize((width, height), Image.Resampling.BOX))


def motion_blur(pixels: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """Σ_i w_i · x at ⌈i · (sin α, cos α) − ½⌉ pixels (down, right) from each pixel, rounded; edges go on for ever.

    w_i ∝ exp(−i² / 2σ²), i = 0 … 2r; α uniform in ±45°; (r, σ) = (10, 3), (15, 5), (15, 8), (15, 12), (20, 15). This is
    how ImageMagick, which ImageNet-C calls, blurs along a line to one side.

    Deviations: 32-bit floats where ImageMagick has 16-bit pixels.
    """
    radius, sigma = ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))[severity - 1]
    angle = np.deg2rad(random.uniform(-45, 45))
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).astype(np.float32)
    downs, rights = (np.ceil(steps * side - 0.5).astype(int) for side in (np.sin(angle), np.cos(angle)))
    height, width = pixels.shape[:2]
    above = -int(downs.min())
    around = np.pad(pixels, ((above, int(downs.max())), (0, int(rights.max())), (0, 0)), mode="edge")
    found = np.full(pixels.shape, 0.5, np.float32)
    for weight, down, right in zip(weights, downs + above, rights, strict=True):
        found += weight * around[down : down + height, right : right + width]
    return eight_bits(found)


def spatter(pixels: Pixels, severity: int, random: np.random.Generator) -> Pixels:
    """Drops of water (severities 1 to 3) or of mud (4 and 5).

    L = N(μ, s²) of each pixel, smoothed by a Gaussian of width σ, 0 where below t;
    (μ, s, σ, t) = (0.65, 0.3, 4, 0.69), (0.65, 0.3, 3, 0.68), (0.65, 0.3, 2, 0.68), (0.65, 0.3, 1, 0.65),
    (0.67, 0.4, 1, 0.65).

    Water: x + c · m / max m · (175, 238, 238), m = L · relief(distance to the outlines of L), c = 0.6, 0.6, 0.5.
    Mud: x · (1 − m) + m · (63, 42, 20), m = (L > t) smoothed with a width of 1.5, 0 where below 0.8.

    Deviations: an image without a drop stays as it is. Outlines, distance and relief follow OpenCV's steps, whose sums
    differ in the last bit of a float.
    """
    mean, deviation, sigma, threshold = (
        (0.65, 0.3, 4.0, 0.69), (0.65, 0.3, 3.0, 0.68), (0.65, 0.3, 2.0, 0.68), (0.65, 0.3, 1.0, 0.65),
        (0.67, 0.4, 1.0, 0.65),
    )[severity - 1]  # fmt: skip
    liquid = smoothed(random.normal(mean, deviation, pixels.shape[:2]), sigma)
    if severity > 3:
        mask = smoothed((liquid > threshold).astype(float), 1.5)
        mask = np.where(mask < 0.8, 0.0, mask)[..., None]
        return eight_bits(pixels * (1 - mask) + mask * (63, 42, 20))
    drops = eight_bits(255 * np.where(liquid < threshold, 0.0, liquid))
    light = drops * relief(distance(outlines(drops)))
    light *= (0.6, 0.6, 0.5)[severity - 1] / max(light.max(), 1e-9)
    return eight_bits(pixels + light[..., None] * (175, 238, 238))


def eight_bits(values: Float[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Cut to 0 … 255, then to the whole number below."""
    return np.clip(values, 0, 255).astype(np.uint8)


def smoothed(plane: Float[np.ndarray, "height width"], sigma: float) -> Float[np.ndarray, "height width"]:
    """A Gaussian filter that reaches to 4σ; edges go on for ever."""
    reach = int(4 * sigma + 0.5)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    weights /= weights.sum()
    for _ in range(2):
        around, total = np.pad(plane, ((reach, reach), (0, 0)), mode="edge"), np.zeros(plane.shape)
        for start, weight in enumerate(weights):
            total += weight * around[start : start + len(plane)]
        plane = total.T
    return plane


def outlines(plane: UInt8[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Canny's edges as OpenCV finds them: Sobel, |dx| + |dy|, thresholds 50 and 150."""
    around = np.pad(plane.astype(np.int32), 1, mode="edge")
    tall, wide = around[:-2] + 2 * around[1:-1] + around[2:], around[:, :-2] + 2 * around[:, 1:-1] + around[:, 2:]
    dx, dy = tall[:, 2:] - tall[:, :-2], wide[2:] - wide[:-2]
    slope = np.abs(dx) + np.abs(dy)
    near = neighbours(slope, "constant")
    flat = np.abs(dy) < np.abs(dx) * np.tan(np.pi / 8)
    steep = np.abs(dy) > np.abs(dx) * np.tan(3 * np.pi / 8)
    falling = (dx ^ dy) < 0
    # the largest across the edge, which runs in one of four directions; of equals the first
    ahead = np.select([flat, steep, falling], [near[1][0], near[0][1], near[0][2]], near[0][0])
    behind = np.select([flat, steep, falling], [near[1][2], near[2][1], near[2][0]], near[2][2])
    crests = (slope > ahead) & np.where(flat | steep, slope >= behind, slope > behind) & (slope > 50)
    found, count = crests & (slope > 150), -1
    while count != (count := np.count_nonzero(found)):
        found = np.any(neighbours(found, "constant"), axis=(0, 1)) & crests
    return found


def distance(edges: Bool[np.ndarray, "height width"], most: int = 20) -> Float[np.ndarray, "height width"]:
    """From each pixel to the nearest edge, at most 20, in steps of a king (1 and 1.4) and a knight (2.1969).

    These are OpenCV's steps for L2 with a 5 × 5 mask. No obstacles are in the way, so that the distance is a function
    of rows and columns apart: the nearest edge of each column first, then the best of the columns around.
    """
    height, width = edges.shape
    rows = np.arange(height)[:, None]
    above = np.maximum.accumulate(np.where(edges, rows, -most), axis=0)
    below = np.minimum.accumulate(np.where(edges, rows, height + most)[::-1], axis=0)[::-1]
    apart = np.minimum(np.minimum(rows - above, below - rows), most)
    long, short = (pick(*np.indices((most, most + 1))) for pick in (np.maximum, np.minimum))
    steps = np.where(long >= 2 * short, long + 0.1969 * short, 0.7969 * long + 0.6031 * short)
    around = np.pad(apart, ((0, 0), (most, most)), constant_values=most)
    found = np.full(edges.shape, float(most))
    for shift in range(1 - most, most):
        np.minimum(found, steps[abs(shift)][around[:, most + shift : most + shift + width]], out=found)
    return found


def relief(depth: Float[np.ndarray, "height width"]) -> Float[np.ndarray, "height width"]:
    """Lit from one side: 3 × 3 mean, histogram equalised, embossed by ((−2 −1 0) (−1 1 1) (0 1 2)), 3 × 3 mean."""
    levels = np.mean(neighbours(depth, "reflect"), axis=(0, 1)).astype(np.uint8)
    counts = np.bincount(levels.ravel(), minlength=256)
    counts[levels.min()] = 0
    if counts.any():  # more than one level
        levels = np.rint(np.cumsum(counts) * (255 / counts.sum())).astype(np.uint8)[levels]
    lamp = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
    embossed = np.clip(np.einsum("ij,ijhw->hw", lamp, neighbours(levels.astype(int), "reflect")), 0, 255)
    return np.rint(np.mean(neighbours(embossed, "reflect"), axis=(0, 1)))


def neighbours(plane: np.ndarray, mode: str) -> np.ndarray:
    """(3, 3, height, width): each pixel's neighbours, itself in the middle; `mode` is np.pad's beyond the edges."""
    height, width = plane.shape
    around = np.pad(plane, 1, mode=mode)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return np.stack([[around[i : i + height, j : j + width] for j in range(3)] for i in range(3)])


CORRUPTIONS: Mapping[str, Callable[[Pixels, int, np.random.Generator], Pixels]] = {
    rule.__name__: rule
    for rule in (contrast, gaussian_noise, impulse_noise, jpeg_compression, motion_blur, pixelate, spatter)
}
ALIASES = {"jpeg": "jpeg_compression"}
