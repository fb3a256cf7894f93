"""A split's images in preprocessed blocks on a device, one block ahead of whoever asks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from clipfuse.data.ahead import ahead
from clipfuse.data.corrupted import Corruption, corrupt_all
from clipfuse.data.decode import Decoded, decode, finish
from clipfuse.data.digests import block_digest
from clipfuse.data.image_cache import SHARD, Entry, fill, missing, open_entry, unreadable_rows
from clipfuse.data.preprocess import Preprocess
from clipfuse.data.splits import Split
from clipfuse.errors import TaskError
from clipfuse.shapes import Int, UInt8

CPU = torch.device("cpu")
Unreadable = Literal["error", "skip"]


@dataclass(frozen=True)
class ImageSet:
    """A split ready to be scored: its images come from the cache's `entry`, or are decoded as they are needed."""

    split: Split
    preprocess: Preprocess
    entry: Entry | None = None
    unreadable: Unreadable = "error"
    """What becomes of images that cannot be read: an error, or they are left out and counted."""
    corruption: Corruption | None = None
    most: int | None = None
    """Blocks that are read; None is all."""

    @property
    def lacking(self) -> int:
        """Images that the cache still has to decode."""
        return missing(self.entry) if self.entry else 0

    def decoded(self, number: int) -> Decoded:
        """The images of one shard."""
        if self.entry:
            return self.entry.read(number)
        return decode(self.split, self.preprocess, self.rows(number))

    def rows(self, number: int) -> range:
        return range(number * SHARD, min((number + 1) * SHARD, len(self.split)))

    @property
    def count(self) -> int:
        """How many blocks are read."""
        return min(-(-len(self.split) // SHARD), self.most or len(self.split))

    @property
    def size(self) -> int:
        """How many images are read."""
        return min(len(self.split), self.count * SHARD)


def open_images(
    split: Split,
    preprocess: Preprocess,
    cached: bool = True,
    unreadable: Unreadable = "error",
    corruption: Corruption | None = None,
) -> ImageSet:
    """A split's images; `cached` keeps them decoded on disk (`image_cache.fill` does so at once)."""
    entry = open_entry(split, preprocess) if cached else None
    return ImageSet(split, preprocess, entry, unreadable, corruption)


@dataclass(frozen=True)
class Block:
    """Preprocessed images; `pixels` lie on the device and are those of `share` only."""

    number: int
    pixels: UInt8[Tensor, "part 3 side side"]
    labels: Int[Tensor, "image"]
    digest: bytes
    """sha256 over the digests of the images' encoded bytes and the labels, of the images that could be read."""
    share: Sequence[slice]
    """Batches of the block that are to be scored here, as places among its readable images."""
    unreadable: int
    """Images that were left out."""


def blocks(
    images: ImageSet,
    batch_size: int = SHARD,
    device: torch.device = CPU,
    numbers: Sequence[int] | None = None,
    share: tuple[int, int] = (0, 1),
) -> Iterator[Block]:
    """Blocks of 1,024 images, the next one made ready while one is looked at.

    Args:
        images: What is read.
        batch_size: Images that go together; a block is cut into such batches.
        device: Where pixels go.
        numbers: Which blocks; None is all.
        share: (r, w): of the batches, counted through all blocks, those whose number is r modulo w are made ready.

    Raises:
        TaskError: images that cannot be read; they are named and counted.
    """

    def load(number: int) -> Block:
        return make_block(images, number, batch_size, device, share)

    yield from ahead(load, range(images.count) if numbers is None else numbers, depth=1)


def make_block(images: ImageSet, number: int, batch_size: int, device: torch.device, share: tuple[int, int]) -> Block:
    """One block, read, checked and preprocessed."""
    found, rows = images.decoded(number), images.rows(number)
    readable = found.readable()
    if not readable.all() and images.unreadable == "error":
        bad = [rows[i] for i, good in enumerate(readable.tolist()) if not good]
        raise TaskError(describe(images, bad, rows.stop))
    kept = readable.nonzero().flatten().tolist()
    labels = torch.tensor([images.split.labels[rows[i]] for i in kept], dtype=torch.int64)
    digests = found.digests[readable]
    first = number * -(-SHARD // batch_size)
    batches = [slice(start, min(start + batch_size, len(kept))) for start in range(0, len(kept), batch_size)]
    mine = [batch for i, batch in enumerate(batches, first) if i % share[1] == share[0]]
    wanted = [place for batch in mine for place in range(batch.start, batch.stop)]
    native = found.native[readable][wanted].tolist()
    with aside(device):
        pixels = torch.empty(0, 3, *[images.preprocess.crop] * 2, dtype=torch.uint8, device=device)
        if wanted:
            where = CPU if images.corruption else device
            pixels = finish([found.images[kept[i]] for i in wanted], native, images.preprocess, where)
        if images.corruption and wanted:
            pixels = corrupt_all(pixels, images.corruption, digests[wanted]).to(device)
    if device.type == "cuda":  # it was made on a stream of its own and is used on another
        pixels.record_stream(torch.cuda.current_stream(device))
    return Block(number, pixels, labels, block_digest(digests, labels), mine, len(rows) - len(kept))


@contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """Work for a CUDA device beside what it is computing, done at the end; elsewhere nothing special."""
    if device.type != "cuda":
        yield
        return
    stream = side_stream(device)
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


@cache
def side_stream(device: torch.device) -> "torch.cuda.Stream":
    """One for each device and process: the allocator keeps what was freed for each stream apart."""
    return torch.cuda.Stream(device)


def make_ready(images: ImageSet, told: Callable[[int], None] = lambda count: None) -> None:
    """Decode into the cache what it lacks; `told` the images. Nothing to do where nothing is cached.

    Raises:
        TaskError: images that cannot be read, unless they are to be skipped; they are named and counted.
        OutputError: the cache cannot be written.
    """
    if images.entry:
        fill(images.entry, told)
        if images.unreadable == "error" and (rows := unreadable_rows(images.entry)):
            raise TaskError(describe(images, rows, len(images.split)))


def describe(images: ImageSet, rows: Sequence[int], looked: int) -> str:
    """Name and count unreadable images among those that were looked at."""
    where = f"{images.split.task}: {images.split.label_of(rows[0])}: is not a readable image"
    more = f" ({len(rows)} of {looked:,} images are not)" if len(rows) > 1 else ""
    return f"{where}{more}; unreadable=skip leaves such images out and counts them"
