"""Which image comes when: a function of the seed alone, so that an interrupted training goes on as it would have."""

from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from zlib import crc32

import numpy as np
import torch


def seed_of(*key: int | str) -> int:
    """63 random bits that depend on nothing but the key."""
    words = [crc32(part.encode()) if isinstance(part, str) else part for part in key]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1)


class Order:
    """An endless stream of `count` images: pass after pass, each in an order of its own."""

    def __init__(self, count: int, task: str, seed: int):
        self.count, self.seed = count, seed_of(seed, task)
        self.of_pass = lru_cache(2)(self.shuffled)

    def shuffled(self, number: int) -> list[int]:
        random = torch.Generator().manual_seed(seed_of(self.seed, number))
        return torch.randperm(self.count, generator=random).tolist()

    def take(self, start: int, images: int) -> list[int]:
        """Images number `start` to `start + images − 1` of the stream."""
        return list(islice(self.stream(start), images))

    def stream(self, start: int) -> Iterator[int]:
        number, place = divmod(start, self.count)
        while True:
            yield from self.of_pass(number)[place:]
            number, place = number + 1, 0
