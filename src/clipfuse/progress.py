"""How long work tells how far it is, without knowing who looks."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Stage = Callable[[str, int, str], AbstractContextManager[Callable[..., None]]]
"""`stage(title, total, unit)`: a context whose value is told how much was done since the last call, and on what.

What an evaluation is on is a `Tally`: a model on a task, with the counts so far.
"""


@contextmanager
def silent(title: str, total: int, unit: str) -> Iterator[Callable[..., None]]:
    """Shows nothing."""
    yield lambda count, on=None: None
