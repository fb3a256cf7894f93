"""What a task of the tiny suite is, and where its random numbers come from."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence

SPLITS = ("train", "val", "test")

PER_CLASS = {"train": 100, "val": 25, "test": 100}
"""Pictures per class of a drawn task."""

Example = tuple[int, np.ndarray]
"""A label and its picture, (32, 32, 3) uint8, RGB."""


@dataclass(frozen=True)
class TinyTask:
    """An image classification task that makes its own pictures.

    `examples(split)` yields the pictures of one split, the same ones in the same order every time.
    Each of `templates` holds exactly one `{c}`; `classes` are in label order.
    """

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    examples: Callable[[str], Iterable[Example]]
    sizes: tuple[int, int, int] | None = None
    """Pictures in train, val and test, where they are not `PER_CLASS`."""
    licence: str = "that of clipfuse"
    paper: str = "none: drawn by clipfuse"

    def counts(self) -> Mapping[str, int]:
        """Pictures per split."""
        sizes = self.sizes or [PER_CLASS[split] * len(self.classes) for split in SPLITS]
        return dict(zip(SPLITS, sizes, strict=True))


def source(task: str, split: str, index: int) -> Generator:
    """Random numbers for one picture: a stream of its own per (task, split, index), so that splits never share any.

    `split` is one of `SPLITS`, or another word for pictures that belong to no split (the pre-training has its own).
    """
    key = [zlib.crc32(task.encode()), zlib.crc32(split.encode()), index]
    return Generator(PCG64(SeedSequence(key)))


def drawings(
    name: str, classes: int, draw: Callable[[int, Generator], np.ndarray]
) -> Callable[[str], Iterator[Example]]:
    """The `examples` of a task whose pictures are drawn, class after class, by `draw(label, random)`."""

    def examples(split: str) -> Iterator[Example]:
        count = PER_CLASS[split]
        for number in range(classes * count):
            label = number // count
            yield label, draw(label, source(name, split, number))

    return examples
