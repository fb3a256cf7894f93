"""Splits whose labels cannot be reached: what methods are lent that have not declared that they look at labels."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from clipfuse.data.blocks import ImageSet
from clipfuse.errors import ConfigError


@dataclass(frozen=True)
class Withheld(Sequence[int]):
    """Says how many labels there are, and raises ConfigError for every other question."""

    size: int
    why: str

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: object) -> NoReturn:
        raise ConfigError(self.why)


def without_labels(images: ImageSet, why: str) -> ImageSet:
    """The same images with labels that raise ConfigError(`why`).

    It keeps a method from looking by mistake; names of files and whatever else Python can be made to give may still
    tell a label.
    """
    split = replace(images.split, labels=Withheld(len(images.split), why))
    return replace(images, split=split, entry=images.entry and replace(images.entry, split=split))
