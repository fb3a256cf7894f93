"""What a method that does not fit a leaf at a time works with: the engine's threads, scratch, images, steps."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.errors import ConfigError
from clipfuse.fusion.kept import Kept
from clipfuse.fusion.lent import Lent
from clipfuse.fusion.sinks import scratch
from clipfuse.pool import Leaf, PoolView
from clipfuse.pool.view import Grain
from clipfuse.stop import Stop

log = logging.getLogger(__name__)
T = TypeVar("T")
SAVE_SECONDS = 60.0
"""Between states."""


@dataclass
class Run:
    """The engine's side of a generator method `(view, cfg, run) → (name, Δ)`."""

    view: PoolView
    """The pool through the edits."""
    held: ExitStack
    lent: Lent | None = None
    kept: Kept = field(default_factory=Kept)
    tally: Counter[str] = field(default_factory=Counter)
    """Exact counts for the record."""
    files: dict[str, str] = field(default_factory=dict)
    """Texts that go beside the merged weights, by file name."""
    edits: tuple[Mapping[str, Any], ...] = ()
    """What `view` looks through, as in YAML."""
    said: str = ""
    asked: bool = False
    """Whether ^C or SIGTERM came in a step after which no other was asked for."""

    @classmethod
    @contextmanager
    def open(cls, view: PoolView, lent: Lent | None = None, kept: Kept | None = None, **more: Any) -> Iterator["Run"]:
        """A run over a view; its scratch vanishes at the end."""
        with ExitStack() as held:
            yield cls(view, held, lent, kept or Kept(), **more)

    @property
    def data(self) -> Lent:
        """What the method may look at. Raises ConfigError where it has not declared that it looks at anything."""
        if self.lent is None:
            raise ConfigError("run.data: is for methods that declare what they look at (uses=…)")
        return self.lent

    @property
    def seed(self) -> int:
        """Of the run."""
        return self.view.seed

    def map(self, function: Callable[[Leaf], T], grain: Grain) -> Iterator[T]:
        """`function` of every edited leaf, on the engine's threads and within its budget, results in a fixed order.

        A slice's tensors (grain `element`) are the thread's next slice afterwards: what is kept must be a copy. While
        it is iterated over, torch computes on one thread: no place for forward passes.
        """
        return self.view.map(function, grain)

    def scratch(self, specs: Mapping[str, TensorSpec]) -> dict[str, Tensor]:
        """Tensors of zeros in a temporary mapped file; threads may write to parts of their own."""
        return self.held.enter_context(scratch(specs))

    def say(self, text: str) -> None:
        """What is shown beside the step that is being made."""
        self.said = text

    def steps(self, total: int, tensors: Mapping[str, Tensor], title: str, unit: str = "step") -> Iterator[int]:
        """Numbers of the steps that are left to be made.

        Args:
            total: Steps in all.
            tensors: All that later steps and the result depend on; a step changes them in place. They are saved every
                minute, and at ^C or SIGTERM, which end the run after the step; the same call with the same inputs then
                puts them back and goes on.
            title: What is shown, and what tells the states of one run apart.
            unit: Of what is counted.

        Raises:
            KeyboardInterrupt: ^C or SIGTERM; the state is saved first.
            OutputError: the state cannot be written.
        """
        state = {**tensors, **(self.lent.state if self.lent else {})}
        done = self.kept.load(title, state)
        if done:
            log.info("%s: goes on after %d of %d %ss", title, done, total, unit)
        stage = self.data.stage(title, total, unit)
        saved = time.monotonic()
        with stage as told, Stop() as stop:
            told(done)
            while done < total:
                try:
                    yield done
                except GeneratorExit:  # whoever takes the steps has enough of them
                    self.asked = stop.asked
                    raise
                done += 1
                told(1, self.said or None)
                late = time.monotonic() - saved > SAVE_SECONDS
                if (stop.asked or late) and self.kept.save(title, state, done):
                    saved = time.monotonic()
                    if stop.asked:
                        log.warning("%s: %s %d of %d is saved; the same command goes on", title, unit, done, total)
                if stop.asked:
                    raise KeyboardInterrupt
            if time.monotonic() - saved > SAVE_SECONDS / 6:  # what follows may be interrupted, too
                self.kept.save(title, state, done)


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
