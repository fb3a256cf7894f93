"""A split's images in any order, as training takes them, and made ahead of whoever uses them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from clipfuse.cores import available_cores
from clipfuse.data.blocks import CPU, ImageSet, aside, describe
from clipfuse.data.decode import decode, finish, one_view
from clipfuse.data.image_cache import SHARD, Entry, read_shard
from clipfuse.errors import CheckpointError, TaskError
from clipfuse.shapes import Bool, Int, UInt8

T = TypeVar("T")


@dataclass(frozen=True)
class Shard:
    """A mapped shard of the image cache, checked."""

    images: Sequence[Tensor] | Tensor
    """(3, height, width) uint8 each; one tensor where all have one size, which spares 600 bytes an image."""
    native: Bool[Tensor, "image"]
    """Images that are still to be resized."""


class Rows:
    """A split's images by row, in any order: from mapped shards of the image cache, else decoded when asked for.

    A shard is checked when it is first touched, and stays mapped. Shards that are not in the cache are looked for again
    each time. To be used from one thread at a time.
    """

    def __init__(self, images: ImageSet):
        assert images.corruption is None, "images to train on are not corrupted"
        self.images = images
        self.shards: dict[int, Shard] = {}
        self.given_up: set[int] = set()
        """Damaged shards that could not be replaced."""

    def __len__(self) -> int:
        return len(self.images.split)

    @cached_property
    def labels(self) -> Int[Tensor, "image"]:
        """Of the whole split, int64."""
        return torch.tensor(list(self.images.split.labels), dtype=torch.int64)

    def pixels(self, rows: Sequence[int], device: torch.device = CPU) -> UInt8[Tensor, "row 3 side side"]:
        """The images `rows`, preprocessed; they may repeat. Not to be changed: they may be views of the cache.

        Raises:
            TaskError: images that cannot be read; they are named and counted.
            torch.OutOfMemoryError: they do not fit the device.
        """
        if not len(rows):
            return torch.empty(0, 3, *[self.images.preprocess.crop] * 2, dtype=torch.uint8, device=device)
        self.touch({row // SHARD for row in rows})
        found = {}
        for row in set(rows):
            if shard := self.shards.get(row // SHARD):
                found[row] = shard.images[row % SHARD], bool(shard.native[row % SHARD])
        if lacking := sorted(set(rows) - set(found)):
            decoded = decode(self.images.split, self.images.preprocess, lacking)
            found |= dict(zip(lacking, zip(decoded.images, decoded.native.tolist(), strict=True), strict=True))
        if bad := sorted(row for row, (image, _) in found.items() if not image.numel()):
            raise TaskError(describe(self.images, bad, len(found)))
        with aside(device):
            values = [found[row][0] for row in rows]
            pixels = finish(values, [found[row][1] for row in rows], self.images.preprocess, device)
        if device.type == "cuda":  # it was made on a stream of its own and is used on another
            pixels.record_stream(torch.cuda.current_stream(device))
        return pixels

    def touch(self, numbers: set[int]) -> None:
        """Map and check the shards `numbers` that are in the cache and are not mapped yet."""
        entry = self.images.entry
        new = sorted(numbers - set(self.shards) - self.given_up) if entry else []
        if entry is None or not (new := [number for number in new if entry.file(number).is_file()]):
            return
        with ThreadPoolExecutor(available_cores()) as threads:
            for number, shard in zip(new, threads.map(lambda number: open_shard(entry, number), new), strict=True):
                if shard:
                    self.shards[number] = shard
                else:
                    self.given_up.add(number)


def open_shard(entry: Entry, number: int) -> Shard | None:
    """A shard of the cache, mapped; a damaged one is made again. None if it cannot be kept there."""
    rows, path = entry.shards()[number], entry.file(number)
    try:
        found = read_shard(path, len(rows))
    except FileNotFoundError:
        return None
    except CheckpointError:
        entry.read(number)
        try:
            found = read_shard(path, len(rows))
        except (CheckpointError, FileNotFoundError):
            return None
    whole = one_view(found.images)
    return Shard(found.images if whole is None else whole, found.native)
