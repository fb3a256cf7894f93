"""Order statistics over whole task vectors, found without holding them."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clipfuse.pool.leaf import Leaf
from clipfuse.pool.view import PoolView
from clipfuse.shapes import Float

TOP = 1 << 31
"""Bits of |x| as a float32 lie in [0, TOP), sorted like the numbers."""
BIN_BITS = 20
"""A histogram has 2^20 bins of 8 bytes each and task."""
SAMPLE = 1024
"""Leading elements of a slice that the first guess looks at."""
MARGIN = 0.01
"""Share of entries on either side of the guess that the first window takes in."""


def kth_magnitudes(view: PoolView, keep: float) -> Float[Tensor, "task"]:
    """The (d − ⌊keep·d⌋)-th smallest of the d magnitudes |τ_k| of each task vector. Exact.

    The bits of non-negative floats sort like the floats. A sample of each slice gives a window that holds the
    answer; a pass counts what lies below it and bins what lies inside; that is repeated, on the whole range if the
    guess was wrong, until a bin is one number. One sampling pass and mostly one full pass; 8 MiB a task.
    """
    size = sum(spec.numel for spec in view.specs.values())
    rank = size - int(keep * size)  # counted from 1
    if rank < 1:
        return torch.zeros(len(view.tasks))
    low, high = narrower(view, rank, *first_window(view, rank / size))
    while any(h - w > 1 for w, h in zip(low, high, strict=True)):
        low, high = narrower(view, rank, low, high)
    return torch.tensor(low, dtype=torch.int32).view(torch.float32)


def magnitude_bits(leaf: Leaf) -> npt.NDArray[np.int32]:
    """|τ| as integers that sort alike, (task, element)."""
    return leaf.deltas.abs().flatten(1).numpy().view(np.int32)


def first_window(view: PoolView, share: float) -> tuple[list[int], list[int]]:
    """Per task, bits [low, high) between which the `share`-quantile should lie, from a sample of every slice."""
    sample = np.concatenate(list(view.map(lambda leaf: magnitude_bits(leaf)[:, :SAMPLE].copy(), head=SAMPLE)), 1)
    last = sample.shape[1] - 1
    low, high = max(int((share - MARGIN) * last), 0), min(int((share + MARGIN) * last) + 1, last)
    sample.partition((low, high), axis=1)
    return sample[:, low].tolist(), (sample[:, high] + 1).tolist()


def narrower(view: PoolView, rank: int, low: list[int], high: list[int]) -> tuple[list[int], list[int]]:
    """One pass: the bin inside [low, high) that holds the rank-th entry, or the side of the window it lies on."""
    shifts = [max(0, (h - w - 1).bit_length() - BIN_BITS) for w, h in zip(low, high, strict=True)]
    below = np.zeros(len(low), np.int64)
    bins = np.zeros((len(low), 1 << BIN_BITS), np.int64)

    def count(leaf: Leaf) -> tuple[list[int], list[npt.NDArray[np.int32]]]:
        under, inside = [], []
        for row, w, h, shift in zip(magnitude_bits(leaf), low, high, shifts, strict=True):
            under.append(int(np.count_nonzero(row < w)))
            row -= np.int32(w)
            inside.append(row[np.flatnonzero(row.view(np.uint32) < h - w)] >> shift)
        return under, inside

    for under, inside in view.map(count):
        below += under
        for k, found in enumerate(inside):
            np.add.at(bins[k], found, 1)
    windows = [window(rank - int(below[k]), bins[k], low[k], high[k], shift) for k, shift in enumerate(shifts)]
    return [w for w, _ in windows], [h for _, h in windows]


def window(left: int, bins: npt.NDArray[np.int64], low: int, high: int, shift: int) -> tuple[int, int]:
    """Where the `left`-th entry (from 1) of those in [low, high) lies, given the counts of its bins."""
    if left < 1:
        return 0, low
    cumulative = bins.cumsum()
    if left > cumulative[-1]:
        return high, TOP
    start = low + (int(np.searchsorted(cumulative, left)) << shift)
    return start, min(start + (1 << shift), high)
