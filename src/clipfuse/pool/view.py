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
from clipfuse.errors import ConfigError
from clipfuse.pool.leaf import Leaf
from clipfuse.pool.model_pool import ModelPool
from clipfuse.pool.room import Room

Grain = Literal["element", "matrix", "leaf"]
GRAINS: tuple[Grain, ...] = ("element", "matrix", "leaf")
"""From fine to coarse: slices of a parameter, whole matrices, whole parameters."""

SLICE = 98_304
"""Elements in a slice: few enough that work on eight experts stays in cache, enough that Python does not count.

Slices begin at multiples of it, always.
"""

DEVICE_SLICE = 32 * SLICE
"""The same on a device that is no CPU, where starting an operation costs more than memory does."""

AHEAD = 4
"""Slices a thread that are computed or wait to be taken."""

MEMORY = 1 << 30
"""Bytes that leaves in work take together unless a budget says otherwise; one leaf that needs more works alone."""

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
    device: str = "cpu"
    """Where leaves are worked on."""
    memory: int | None = None
    """Most bytes that leaves in work may take together; None is `MEMORY`, where a leaf that needs more works alone."""
    appetite: float = 4.0
    """Most memory that work on a leaf takes, in sizes of its float32 task vectors (task, *shape)."""
    only: frozenset[str] | None = None
    """Names of the parameters that it shows; None is all."""
    others: tuple[str, ...] = ()
    """Names of experts that are merged with these but are not in this pool: they have arrived already, or will."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the experts."""
        return self.pool.tasks

    @property
    def known(self) -> tuple[str, ...]:
        """Names of all experts that a setting may speak of."""
        return tuple(dict.fromkeys((*self.others, *self.tasks)))

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Shape and dtype of every parameter, by name."""
        shown = self.pool.specs
        return shown if self.only is None else {name: spec for name, spec in shown.items() if name in self.only}

    @property
    def slice(self) -> int:
        """Elements in a slice."""
        return SLICE if self.device == "cpu" else DEVICE_SLICE

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
        return (self.edited(self.pool.leaf(name, device=self.device, seed=self.seed)) for name in self.specs)

    def need(self, numel: int, grain: Grain) -> int:
        """Bytes that work on a leaf of so many elements takes; slices are copied from the files, the rest is mapped."""
        copied = len(self.pool.checkpoints) * max(spec.dtype.itemsize for spec in self.pool.specs.values())
        return int(self.appetite * len(self.tasks) * numel * 4) + (numel * copied if grain == "element" else 0)

    def check_memory(self, grain: Grain) -> None:
        """Raises ConfigError if the budget is too small for the largest leaf at a grain."""
        grain = coarsest(grain, self.grain)
        name, numel = largest(self.specs, grain, self.slice)
        need = self.need(numel, grain)
        if self.memory is not None and need > self.memory:
            raise ConfigError(
                f"memory: {self.memory:,} bytes are too few; {name} of {len(self.tasks)} experts takes about {need:,}"
            )

    def workers(self, grain: Grain) -> int:
        """Threads that work at once: of those with slices, as many as fit the budget; others wait for a share of it."""
        _, numel = largest(self.specs, grain, self.slice)
        fit = (self.memory or MEMORY) // max(1, self.need(numel, grain)) if grain == "element" else self.threads
        return max(1, min(self.threads, fit))

    def map(self, function: Callable[[Leaf], T], grain: Grain = "element", head: int | None = None) -> Iterator[T]:
        """`function` of every edited leaf, in the order of the slices; of a slice only its first `head` elements.

        Whole leaves (an edit or `grain` coarser than element) are never shortened.
        """
        return self.map_raw(lambda leaf: function(self.edited(leaf)), grain, head)

    def map_raw(self, function: Callable[[Leaf], T], grain: Grain = "element", head: int | None = None) -> Iterator[T]:
        """`function` of every leaf before the edits, in the order of the slices; few results wait to be taken.

        Mapped pages are given back to the system as soon as a parameter is done.
        """
        self.check_memory(grain)
        grain = coarsest(grain, self.grain)
        places = list(slices(self.specs, grain, self.slice, head))
        if grain != "element":  # large ones first, so that no thread is left alone with one at the end
            places.sort(key=lambda place: -self.specs[place[0]].numel)
        work = Work(self, function, Counter(name for name, _, _ in places))
        threads = self.workers(grain)
        with one_torch_thread():
            pool = ThreadPoolExecutor(threads, thread_name_prefix="clipfuse")
            running: deque[Future[T]] = deque()
            try:
                for place in places:
                    running.append(pool.submit(work, place))
                    if len(running) > AHEAD * threads:
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
        self.budget = Budget(view.memory or MEMORY)
        self.sizes = {name: spec.numel for name, spec in view.specs.items()}

    def __call__(self, place: tuple[str, int, int | None]) -> T:
        name, start, stop = place
        view = self.view
        if stop is not None:
            if not hasattr(self.local, "room"):
                self.local.room = Room(view.pool.checkpoints, len(view.tasks), view.slice, view.device)
            leaf = view.pool.leaf(name, start, stop, view.device, seed=view.seed, room=self.local.room)
            result = self.function(leaf)
        else:
            with self.budget.hold(view.need(self.sizes[name], "leaf")):
                leaf = view.pool.leaf(name, device=view.device, seed=view.seed)
                result = self.function(leaf)
        with self.lock:
            self.left[name] -= 1
            if not self.left[name]:
                view.pool.release(name)
            if view.progress:
                view.progress(leaf.numel * view.pool.specs[name].dtype.itemsize * len(view.pool.checkpoints))
        return result


class Budget:
    """Bytes that threads share: who needs more than is left waits, unless nobody else holds any."""

    def __init__(self, limit: int):
        self.limit, self.taken, self.changed = limit, 0, threading.Condition()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Take `size` bytes for the time inside."""
        with self.changed:
            self.changed.wait_for(lambda: not self.taken or self.taken + size <= self.limit)
            self.taken += size
        try:
            yield
        finally:
            with self.changed:
                self.taken -= size
                self.changed.notify_all()


def largest(specs: dict[str, TensorSpec], grain: Grain, size: int = SLICE) -> tuple[str, int]:
    """Name and elements of the largest leaf at a grain."""
    name = max(specs, key=lambda key: specs[key].numel)
    return name, min(specs[name].numel, size) if grain == "element" else specs[name].numel


def coarsest(*grains: Grain) -> Grain:
    """The coarsest of some grains."""
    return GRAINS[max(map(GRAINS.index, grains))]


def slices(
    specs: dict[str, TensorSpec], grain: Grain, size: int = SLICE, head: int | None = None
) -> Iterator[tuple[str, int, int | None]]:
    """(name, start, stop) of every leaf at a grain, of slices only the `head`; stop is None for whole parameters."""
    for name, spec in specs.items():
        if grain == "element":
            for start in range(0, spec.numel, size):
                yield name, start, min(start + (head or size), spec.numel)
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
