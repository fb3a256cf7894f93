"""What a method that does not fit a leaf at a time works with: the engine's slices and threads, and scratch."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.errors import ConfigError
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

    def map(self, function: Callable[[Leaf], T], grain: Grain) -> Iterator[T]:
        """`function` of every edited leaf, on the engine's threads and within its budget, results in a fixed order.

        A slice's tensors (grain `element`) are the thread's next slice afterwards: what is kept must be a copy.
        """
        return self.view.map(function, grain)

    def scratch(self, specs: Mapping[str, TensorSpec]) -> dict[str, Tensor]:
        """Tensors of zeros in a temporary mapped file; threads may write to parts of their own."""
        return self.held.enter_context(scratch(specs))


def complete(
    rule: str, found: Iterable[tuple[str, Tensor]], specs: Mapping[str, TensorSpec]
) -> Iterator[tuple[str, Tensor]]:
    """What a generator method gives, checked: every parameter once, whole. Raises ConfigError."""
    missing = {name: tuple(spec.shape) for name, spec in specs.items()}
    for name, delta in found:
        if name not in missing:
            raise ConfigError(f"{rule}: gave {name} {'twice' if name in specs else 'which is no parameter'}")
        wanted = missing.pop(name)
        if tuple(delta.shape) != wanted:
            raise ConfigError(f"{rule}: gave {tuple(delta.shape)} for {name}, it takes {wanted}")
        yield name, delta
    if missing:
        raise ConfigError(f"{rule}: gave nothing for {next(iter(missing))}")
