"""Work that is done one or two items ahead of whoever asks, in one thread."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(load: Callable[[int], T], numbers: Iterable[int], depth: int = 2) -> Generator[T, None, None]:
    """`load(n)` for each of `numbers`, in order; the next `depth` are made in one thread while one is used.

    What `load` raises is raised where its result would be. Closing the iterator ends the thread, after the `load` that
    it is at.
    """
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(1) as thread:
        try:
            for number in numbers:
                waiting.append(thread.submit(load, number))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            thread.shutdown(wait=True, cancel_futures=True)
