"""Order statistics over whole task vectors, or of numbers made of them, found without holding them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clipfuse.pool.leaf import Leaf
from clipfuse.pool.view import PoolView
from clipfuse.shapes import Float

BOTTOM, TOP = -(1 << 31), 1 << 31
"""Keys of float32 numbers lie in [BOTTOM, TOP), sorted like the numbers."""
BIN_BITS = 20
"""A histogram has 2^20 bins of 8 bytes each."""
HELD = 1 << 22
"""Numbers inside a window that are held, 4 bytes each; more are binned."""
SAMPLE = 1024
"""Leading elements of a slice that the first guess looks at."""
MARGIN = 0.01
"""Share of entries on either side of the guess that the first window takes in."""

Rows = Callable[[Leaf], Float[Tensor, "task *shape"]]
Keys = npt.NDArray[np.int32]


def kth_magnitudes(view: PoolView, keep: float) -> Float[Tensor, "task"]:
    """The (d − ⌊keep·d⌋)-th smallest of the d magnitudes |τ_k| of each task vector. Exact."""
    size = entries(view)
    rank = size - int(keep * size)  # counted from 1
    return order_statistics(view, magnitudes, [rank])[0] if rank else torch.zeros(len(view.tasks))


def entries(view: PoolView) -> int:
    """d, the entries of a whole task vector."""
    return sum(spec.numel for spec in view.specs.values())


def magnitudes(leaf: Leaf) -> Float[Tensor, "task *shape"]:
    return leaf.deltas.abs()


@dataclass(frozen=True)
class Window:
    """Keys [low, high) among which the `rank`-th smallest number of a row lies, or is believed to."""

    row: int
    rank: int
    low: int
    high: int

    @property
    def shift(self) -> int:
        """Bits that its bins do not tell apart."""
        return max(0, (self.high - self.low - 1).bit_length() - BIN_BITS)


def order_statistics(view: PoolView, rows: Rows, ranks: Sequence[int]) -> Float[Tensor, "rank task"]:
    """The smallest numbers but so many, `ranks` counted from 1, of each row over the whole model. Exact; on the CPU.

    The bits of floats, turned a little, sort like the floats. A sample of each slice gives windows that should hold
    the answers; a pass counts what lies below them and bins what lies inside; that is repeated, on the whole range
    where a guess was wrong, until a bin is one number. One sampling pass and mostly one full pass; 8 MiB an answer.
    """
    size = entries(view)
    windows = first_windows(view, rows, ranks, size)
    while True:
        windows = narrower(view, rows, windows)
        if all(window.high - window.low == 1 for window in windows):
            break
    keys = np.array([window.low for window in windows], np.int32).reshape(len(ranks), -1)
    return torch.from_numpy(turn(keys)).view(torch.float32)


def turn(bits: Keys) -> Keys:
    """Bits of float32 as integers that sort alike, and back: negative numbers count the other way round."""
    return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))


def keys_of(rows: Rows, leaf: Leaf) -> Keys:
    """Keys of a leaf, (row, element)."""
    return turn(rows(leaf).flatten(1).contiguous().cpu().numpy().view(np.int32))


def first_windows(view: PoolView, rows: Rows, ranks: Sequence[int], size: int) -> list[Window]:
    """A window for each rank and row, from a sample of every slice."""
    sample = np.concatenate(list(view.map(lambda leaf: keys_of(rows, leaf)[:, :SAMPLE].copy(), head=SAMPLE)), 1)
    sample.sort(axis=1)
    last = sample.shape[1] - 1
    found = []
    for rank in ranks:
        low = max(int((rank / size - MARGIN) * last), 0)
        high = min(int((rank / size + MARGIN) * last) + 1, last)
        # beyond the sample's ends there may be more
        ends = [(BOTTOM if low == 0 else int(row[low]), TOP if high == last else int(row[high]) + 1) for row in sample]
        found += [Window(number, rank, *pair) for number, pair in enumerate(ends)]
    return found


def narrower(view: PoolView, rows: Rows, windows: Sequence[Window]) -> list[Window]:
    """One pass: the number inside each window, the bin that holds it, or the side of the window that it lies on."""
    below = np.zeros(len(windows), np.int64)
    found = [Inside(window) for window in windows]

    def count(leaf: Leaf) -> tuple[list[int], list[npt.NDArray[np.uint32]]]:
        under, inside = [], []
        keys = keys_of(rows, leaf)
        for window in windows:
            row = keys[window.row]
            under.append(int(np.count_nonzero(row < window.low)))
            above = (row - np.int32(window.low)).view(np.uint32)  # wraps where it is below
            inside.append(above[np.flatnonzero(above <= np.uint32(window.high - window.low - 1))])
        return under, inside

    for under, inside in view.map(count):
        below += under
        for window, keys in zip(found, inside, strict=True):
            window.add(keys)
    return [inside.settle(inside.window.rank - int(less)) for inside, less in zip(found, below, strict=True)]


class Inside:
    """Numbers inside a window, as distances of their keys from its low end: held while they are few, then binned."""

    def __init__(self, window: Window):
        self.window, self.held, self.count = window, [], 0
        self.bins: npt.NDArray[np.int64] | None = None

    def add(self, keys: npt.NDArray[np.uint32]) -> None:
        self.held.append(keys)
        self.count += len(keys)
        if self.count > HELD:
            self.bins = np.zeros(1 << BIN_BITS, np.int64) if self.bins is None else self.bins
            for part in self.held:
                np.add.at(self.bins, part >> np.uint32(self.window.shift), 1)
            self.held.clear()

    def settle(self, left: int) -> Window:
        """Where the `left`-th number (from 1) of those inside lies."""
        window = self.window
        if left < 1:
            return replace(window, low=BOTTOM, high=window.low)
        if left > self.count:
            return replace(window, low=window.high, high=TOP)
        if self.bins is None:
            keys = np.concatenate(self.held)
            keys.partition(left - 1)
            low = window.low + int(keys[left - 1])
            return replace(window, low=low, high=low + 1)
        low = window.low + (int(np.searchsorted(self.bins.cumsum(), left)) << window.shift)
        return replace(window, low=low, high=min(low + (1 << window.shift), window.high))
