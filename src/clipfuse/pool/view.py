"""A pool as rules see it: slice by slice, on many threads, through the edits, always in the same blocks."""

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.cores import available_cores
from clipfuse.pool.leaf import Leaf
from clipfuse.pool.model_pool import ModelPool

Grain = Literal["element", "matrix", "leaf"]
GRAINS: tuple[Grain, ...] = ("element", "matrix", "leaf")
"""From fine to coarse: slices of a parameter, whole matrices, whole parameters."""

SLICE = 65_536
"""Elements in a slice: temporaries of eight experts stay in cache. Slices begin at multiples of it, always."""

AHEAD = 4
"""Slices a thread that are computed or wait to be taken."""

T = TypeVar("T")
Edit = Callable[[Leaf], Tensor]
Progress = Callable[[int], None]
"""Told the bytes that have been read since the last call."""


@dataclass(frozen=True)
class PoolView:
    """The pool through `edits`; `map` runs a function over its leaves on `threads` threads, results in order."""

    pool: ModelPool
    edits: tuple[Edit, ...] = ()
    grain: Grain = "element"
    """The coarsest grain of the edits; nothing is cut finer than this."""
    seed: int = 0
    threads: int = field(default_factory=available_cores)
    progress: Progress | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the experts."""
        return self.pool.tasks

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Shape and dtype of every parameter, by name."""
        return self.pool.specs

    def through(self, edits: Sequence[Edit], grain: Grain) -> "PoolView":
        """The same view behind other edits."""
        return replace(self, edits=tuple(edits), grain=grain)

    def edited(self, leaf: Leaf) -> Leaf:
        """A leaf after the edits."""
        for edit in self.edits:
            leaf = leaf.with_deltas(edit(leaf))
        return leaf

    def __iter__(self) -> Iterator[Leaf]:
        """Whole leaves, edited, one after the other."""
        return (self.edited(self.pool.leaf(name, seed=self.seed)) for name in self.specs)

    def map(self, function: Callable[[Leaf], T], grain: Grain = "element", head: int = SLICE) -> Iterator[T]:
        """`function` of every edited leaf, in the order of the slices; of a slice only its first `head` elements.

        Whole leaves (an edit or `grain` coarser than element) are never shortened.
        """
        return self.map_raw(lambda leaf: function(self.edited(leaf)), grain, head)

    def map_raw(self, function: Callable[[Leaf], T], grain: Grain = "element", head: int = SLICE) -> Iterator[T]:
        """`function` of every leaf before the edits, in the order of the slices; few results wait to be taken.

        Mapped pages are given back to the system as soon as a parameter is done.
        """
        places = list(slices(self.specs, coarsest(grain, self.grain), head))
        work = Work(self, function, Counter(name for name, _, _ in places))
        with one_torch_thread():
            pool = ThreadPoolExecutor(self.threads, thread_name_prefix="clipfuse")
            running: deque[Future[T]] = deque()
            try:
                for place in places:
                    running.append(pool.submit(work, place))
                    if len(running) > AHEAD * self.threads:
                        yield running.popleft().result()
                while running:
                    yield running.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)


class Work(Generic[T]):
    """What a thread does with one slice; lends each thread its own room for the task vectors."""

    def __init__(self, view: PoolView, function: Callable[[Leaf], T], left: Counter[str]):
        self.view, self.function, self.left = view, function, left
        self.lock, self.local = threading.Lock(), threading.local()

    def __call__(self, place: tuple[str, int, int | None]) -> T:
        name, start, stop = place
        pool, room = self.view.pool, None
        if stop is not None:
            if not hasattr(self.local, "room"):
                self.local.room = torch.empty(len(pool.tasks), SLICE)
            room = self.local.room
        leaf = pool.leaf(name, start, stop, seed=self.view.seed, room=room)
        result = self.function(leaf)
        with self.lock:
            self.left[name] -= 1
            if not self.left[name]:
                pool.release(name)
            if self.view.progress:
                size = leaf.numel * pool.specs[name].dtype.itemsize
                self.view.progress(size * len(pool.checkpoints))
        return result


def coarsest(*grains: Grain) -> Grain:
    """The coarsest of some grains."""
    return GRAINS[max(map(GRAINS.index, grains))]


def slices(specs: dict[str, TensorSpec], grain: Grain, head: int = SLICE) -> Iterator[tuple[str, int, int | None]]:
    """(name, start, stop) of every leaf at a grain; stop is None for whole parameters."""
    for name, spec in specs.items():
        if grain == "element":
            for start in range(0, spec.numel, SLICE):
                yield name, start, min(start + head, spec.numel)
        else:
            yield name, 0, None


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """torch computes on the calling thread only, so that bits do not depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
