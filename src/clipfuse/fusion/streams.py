"""What a method that does not fit a leaf at a time works with: the engine's slices and threads, and scratch."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.fusion.sinks import scratch
from clipfuse.pool import Leaf, PoolView
from clipfuse.pool.view import Grain

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """The engine's side of a generator method `(view, cfg, run) → (name, Δ)`."""

    view: PoolView
    """The pool through the edits."""
    held: ExitStack
    tally: Counter[str] = field(default_factory=Counter)
    """Exact counts for the record."""

    @classmethod
    @contextmanager
    def open(cls, view: PoolView) -> Iterator["Run"]:
        """A run over a view; its scratch vanishes at the end."""
        with ExitStack() as held:
            yield cls(view, held)

    def map(self, function: Callable[[Leaf], T], grain: Grain = "element") -> Iterator[T]:
        """`function` of every edited leaf, on the engine's threads and within its budget, results in a fixed order."""
        return self.view.map(function, grain)

    def scratch(self, specs: Mapping[str, TensorSpec]) -> dict[str, Tensor]:
        """Tensors of zeros in a temporary mapped file; threads may write to parts of their own."""
        return self.held.enter_context(scratch(specs))
