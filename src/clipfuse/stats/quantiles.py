"""Order statistics over whole task vectors, found without holding them."""

import torch
from torch import Tensor

from clipfuse.pool.leaf import Leaf
from clipfuse.pool.view import PoolView
from clipfuse.shapes import Float, Int

TOP = 1 << 31
"""Bits of |x| as a float32 lie in [0, TOP), sorted like the numbers."""
BINS = 1 << 20
"""Bins of a histogram; 8 bytes each and task."""
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
    low, high = first_window(view, rank / size)
    while bool((high - low > 1).any()):
        low, high = narrower(view, rank, low, high)
    return low.int().view(torch.float32)


def magnitude_bits(leaf: Leaf) -> Int[Tensor, "task element"]:
    """|τ| as integers that sort alike."""
    return leaf.deltas.abs().flatten(1).view(torch.int32)


def first_window(view: PoolView, share: float) -> tuple[Tensor, Tensor]:
    """Per task, bits [low, high) between which the `share`-quantile should lie, from a sample of every slice."""
    sample = torch.cat(list(view.map(lambda leaf: magnitude_bits(leaf)[:, :SAMPLE].clone())), 1).sort(1).values
    last = sample.shape[1] - 1
    low = sample[:, max(int((share - MARGIN) * last), 0)].long()
    high = sample[:, min(int((share + MARGIN) * last) + 1, last)].long() + 1
    return low, high


def narrower(view: PoolView, rank: int, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """One pass: the bin inside [low, high) that holds the rank-th entry, or the side of the window it lies on."""
    shifts = [max(0, int(h - w - 1).bit_length() - BINS.bit_length() + 1) for w, h in zip(low, high, strict=True)]
    below = torch.zeros(len(low), dtype=torch.long)
    bins = torch.zeros(len(low), BINS, dtype=torch.long)

    def count(leaf: Leaf) -> tuple[list[int], list[Tensor]]:
        under, inside = [], []
        for row, w, h, shift in zip(magnitude_bits(leaf), low.tolist(), high.tolist(), shifts, strict=True):
            under.append(int(torch.count_nonzero(row < w)))
            inside.append((row[(row >= w) & (row < h)] - w) >> shift)
        return under, inside

    for under, inside in view.map(count):
        below += torch.tensor(under)
        for k, found in enumerate(inside):
            bins[k].index_add_(0, found, torch.ones_like(found, dtype=torch.long))
    new_low, new_high = low.clone(), high.clone()
    for k, shift in enumerate(shifts):
        if high[k] - low[k] <= 1:
            continue
        left = rank - int(below[k])
        cumulative = bins[k].cumsum(0)
        if left < 1:
            new_low[k], new_high[k] = 0, low[k]
        elif left > int(cumulative[-1]):
            new_low[k], new_high[k] = high[k], TOP
        else:
            at = int(torch.searchsorted(cumulative, left))
            new_low[k] = low[k] + (at << shift)
            new_high[k] = torch.minimum(new_low[k] + (1 << shift), high[k])
    return new_low, new_high
