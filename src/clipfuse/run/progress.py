"""How long work tells how far it is, without knowing who looks."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Stage = Callable[[str, int, str], AbstractContextManager[Callable[[int], None]]]
"""`stage(title, total, unit)`: a context whose value is told how much was done since the last call."""


@contextmanager
def silent(title: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Shows nothing."""
    yield lambda count: None
