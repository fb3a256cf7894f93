"""What a task of the tiny suite is, and where its random numbers come from."""

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence

SPLITS = ("train", "val", "test")

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
    licence: str
    paper: str


def source(task: str, split: str, index: int) -> Generator:
    """Random numbers for one picture: a stream of its own per (task, split, index), so that splits never share any.

    `split` is one of `SPLITS`, or another word for pictures that belong to no split (the pre-training has its own).
    """
    key = [zlib.crc32(task.encode()), zlib.crc32(split.encode()), index]
    return Generator(PCG64(SeedSequence(key)))
