"""Order statistics over whole task vectors, or of numbers made of them, found without holding them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from clipfuse.errors import PoolError
from clipfuse.pool.leaf import Leaf
from clipfuse.pool.view import PoolView
from clipfuse.shapes import Float

SAMPLE = 1 << 18
"""Entries of a row in a sample, about."""
MARGIN = 0.01
"""Share of entries on either side of a guess that its window takes in, or less where that is too much to hold."""
WINDOWS = 128 << 20
"""Bytes that all windows of a pass may hold, about."""
LIMIT = 0.05
"""Share of entries that a window may hold: of more, none are collected."""
PATIENCE = 3
"""Guesses from samples; then windows halve the float32 numbers that are left, and 32 passes suffice for anything."""

NAN = "a number made of the task vectors is NaN: they are too large for float32"

Rows = Callable[[Leaf], Float[Tensor, "task *shape"]]
Numbers = npt.NDArray[np.float32]
Ends = tuple[np.float32, np.float32]
"""Lowest and highest number of a stretch, both in it."""


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


def order_statistics(view: PoolView, rows: Rows, ranks: Sequence[int]) -> Float[Tensor, "rank task"]:
    """The smallest numbers but so many, `ranks` counted from 1, of each row over the whole model. Exact; on the CPU.

    The beginnings of all slices are a sample, which tells between which two numbers each answer should lie. A pass
    counts what lies below that window and collects the few per cent inside; put in order, they hold the answer. Where
    a guess was wrong, the counts tell on which side the answer lies, numbers from everywhere are a better sample, and
    another pass follows. One sampling pass and mostly one full pass; 4 bytes a number in a window, which holds 2 % of
    the model for each answer, but all of them not much more than 128 MiB.
    """
    size = entries(view)
    searches = [Search(row, rank, size) for rank in ranks for row in range(len(view.tasks))]
    margin = min(MARGIN, WINDOWS / max(1, 8 * size * len(searches)))
    left, sample = searches, beginnings(view, rows)
    while left:
        for search in left:
            search.aim(sample[search.row], size, margin)
        look(view, rows, left)
        left = [search for search in left if search.answer is None]
        sample = scattered(view, rows) if left else sample
    found = np.array([search.answer for search in searches], np.float32)
    return torch.from_numpy(found + np.float32(0)).view(len(ranks), -1)  # −0 is 0


@dataclass
class Search:
    """What is known of one answer, the `rank`-th smallest number (from 1) of a row, and where it is looked for."""

    row: int
    rank: int
    upto: int
    """Numbers of the row that are not above `ends`."""
    under: int = 0
    """Numbers of the row below `ends`."""
    ends: Ends = (np.float32(-np.inf), np.float32(np.inf))
    """Where it lies for sure."""
    tries: int = 0
    window: Ends = (np.float32(0), np.float32(0))
    """Where it is looked for in this pass."""
    below: int = 0
    """Numbers below the window."""
    within: int = 0
    """Numbers in the window."""
    inside: Numbers = field(default_factory=lambda: np.empty(0, np.float32))
    """Room for the numbers in the window, the first `held` of them there; memory that is not written to costs none."""
    held: int = 0
    """None are held of a window that is one number wide, or where they are more than fit."""
    room: int = 0
    answer: np.float32 | None = None

    def aim(self, sample: Numbers, size: int, margin: float) -> None:
        """Choose the next window by a sorted sample of a row of `size` numbers, so far on either side of a guess."""
        left, self.room = self.upto - self.under, max(int(LIMIT * size), 1024)
        self.tries, self.below, self.within, self.held = self.tries + 1, 0, 0, 0
        sample = sample[between(sample, self.ends)]
        if left <= self.room:
            self.window = self.ends
        elif self.tries > PATIENCE or not len(sample):
            middle = halfway(*self.ends)
            self.window = middle, middle
        else:
            guess, share = (self.rank - self.under) / left, size / left
            low, high = (int((guess + step * share) * len(sample)) for step in (-margin, margin))
            start = sample[low] if low > 0 else self.ends[0]
            stop = sample[high + 1] if high + 1 < len(sample) else self.ends[1]
            found = between(sample, (start, stop))
            crowded = found.stop - found.start > LIMIT * share * len(sample)  # with one number many times over
            likely = sample[min(int(guess * len(sample)), len(sample) - 1)]
            self.window = (likely, likely) if crowded else (start, stop)

    def count(self, row: Numbers) -> tuple[int, int, Numbers | None]:
        """Of some numbers, how many lie below the window and how many in it; and those in it."""
        low, high = self.window
        under, upto = row < low, row <= high
        below = int(np.count_nonzero(under))
        within = int(np.count_nonzero(upto)) - below
        if low == high or self.within > self.room or not within:
            return below, within, None
        return below, within, row[np.flatnonzero(np.not_equal(under, upto, out=under))]

    def add(self, below: int, within: int, inside: Numbers | None) -> None:
        self.below, self.within = self.below + below, self.within + within
        if self.within <= self.room and inside is not None:
            if not len(self.inside):
                self.inside = np.empty(self.room, np.float32)
            self.inside[self.held : self.held + len(inside)] = inside
            self.held += len(inside)

    def settle(self) -> None:
        """After a pass: the answer, or narrower ends."""
        low, high = self.window
        if self.rank <= self.below:
            self.ends, self.upto = (self.ends[0], following(low, -np.inf)), self.below
        elif self.rank > self.below + self.within:
            if np.isposinf(high):
                raise PoolError(NAN)
            self.ends, self.under = (following(high, np.inf), self.ends[1]), self.below + self.within
        elif low == high:
            self.answer = low
        elif self.within > self.room:
            self.ends, self.under, self.upto = self.window, self.below, self.below + self.within
        else:
            numbers, place = self.inside[: self.held], self.rank - self.below - 1
            numbers.partition(place)
            self.answer, self.inside = numbers[place], np.empty(0, np.float32)


def between(numbers: Numbers, ends: Ends) -> slice:
    """Where sorted numbers lie between two, both included."""
    return slice(int(np.searchsorted(numbers, ends[0])), int(np.searchsorted(numbers, ends[1], "right")))


def numbers_of(rows: Rows, leaf: Leaf) -> Numbers:
    """Numbers of a leaf, (row, element)."""
    return rows(leaf).flatten(1).contiguous().cpu().numpy()


def look(view: PoolView, rows: Rows, searches: Sequence[Search]) -> None:
    """One pass for all searches."""

    def count(leaf: Leaf) -> list[tuple[int, int, Numbers | None]]:
        numbers = numbers_of(rows, leaf)
        return [search.count(numbers[search.row]) for search in searches]

    for found in view.map(count):
        for search, part in zip(searches, found, strict=True):
            search.add(*part)
    for search in searches:
        search.settle()


def beginnings(view: PoolView, rows: Rows) -> Numbers:
    """The first entries of every slice, as many as it is long, (row, number), sorted: cheap, but not everywhere."""
    sizes = {name: spec.numel for name, spec in view.specs.items()}
    every = stride(view)

    def head(leaf: Leaf) -> Numbers:
        whole = sizes[leaf.name] if view.grain != "element" else min(view.slice, sizes[leaf.name] - leaf.start)
        return numbers_of(rows, leaf)[:, : -(-whole // every)].copy()

    return collected(view.map(head, head=-(-view.slice // every)))


def scattered(view: PoolView, rows: Rows) -> Numbers:
    """Some entries from all over the model, (row, number), sorted; one pass."""
    every = stride(view)
    return collected(view.map(lambda leaf: numbers_of(rows, leaf)[:, ::every].copy()))


def stride(view: PoolView) -> int:
    """A sample takes one of so many entries."""
    return max(1, entries(view) // SAMPLE)


def collected(parts: Iterable[Numbers]) -> Numbers:
    sample = np.concatenate(list(parts), 1)
    sample.sort(axis=1)
    if np.isnan(sample[:, -1]).any():
        raise PoolError(NAN)
    return sample


def following(number: np.float32, direction: float) -> np.float32:
    """The next float32 number in a direction."""
    with np.errstate(over="ignore"):
        return np.nextafter(number, np.float32(direction))


def halfway(low: np.float32, high: np.float32) -> np.float32:
    """The number in the middle of all float32 numbers between two."""
    keys = [turn(np.float32(end).view(np.int32)) for end in (low, high)]
    return turn(np.int32(sum(map(int, keys)) // 2)).view(np.float32)


def turn(bits: np.int32) -> np.int32:
    """Bits of a float32 as an integer that sorts alike, and back: negative numbers count the other way round."""
    return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))
