"""Decoded images on disk: written once in shards, memory-mapped ever after, checked when they are read.

An entry is a folder `<task>-<split>-<key>` of `cache_folder("images")`: `about.json`, and one safetensors file for each
1,024 images. Its key is the content's: where the images come from (with revision, or sizes and times of files), which
of them, and the preprocessing. A shard appears whole or not at all, so that building can be interrupted, and done by
several processes at once: they write the same bytes.
"""

import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from clipfuse.cache import cache_folder, cache_limit
from clipfuse.checkpoints.safetensors_file import SafetensorsFile
from clipfuse.checkpoints.writer import part_of, write_text
from clipfuse.data.decode import EMPTY, Decoded, decode
from clipfuse.data.preprocess import Preprocess
from clipfuse.data.splits import Split
from clipfuse.errors import CheckpointError, OutputError

log = logging.getLogger(__name__)
SHARD = 1024
"""Images a file."""
ABOUT = "about.json"
IN_USE: set[Path] = set()
"""Entries that this process has opened: they do not make room for each other."""
FULL = "%s %s: the image cache is full after %d images; the others are decoded each time (CLIPFUSE_CACHE_LIMIT)"


@dataclass(frozen=True)
class Entry:
    """What the cache holds of one split."""

    folder: Path
    split: Split
    preprocess: Preprocess

    def shards(self) -> list[range]:
        """The rows of each shard."""
        return [range(i, min(i + SHARD, len(self.split))) for i in range(0, len(self.split), SHARD)]

    def file(self, number: int) -> Path:
        return self.folder / f"{number:05d}.safetensors"

    def read(self, number: int) -> Decoded:
        """One shard; made again if it is missing or damaged."""
        try:
            return read_shard(self.file(number), len(self.shards()[number]))
        except FileNotFoundError:
            pass  # pruned by another process, or never made
        except CheckpointError as error:
            log.warning("image cache: %s; it is made again", error)
        return self.make(number)

    def make(self, number: int) -> Decoded:
        """Decode one shard and keep it, where there is room and writing is not refused."""
        found = decode(self.split, self.preprocess, self.shards()[number])
        with suppress(OSError, OutputError, SafetensorError):
            self.keep(number, found)
        return found

    def keep(self, number: int, found: Decoded) -> bool:
        """Write one shard; False if that would not fit the cache's limit."""
        if not make_room(sum(image.numel() for image in found.images)):
            return False
        if not (self.folder / ABOUT).is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            about = {
                "task": self.split.task, "split": self.split.name, "images": len(self.split),
                "preprocess": self.preprocess.key, "origin": dict(self.split.origin or {}),
            }  # fmt: skip
            write_text(self.folder / ABOUT, json.dumps(about, indent=2) + "\n")
        write_shard(self.file(number), found)
        return True


def open_entry(split: Split, preprocess: Preprocess) -> Entry | None:
    """The place of a split in the cache, which from now on is in use; None where its images have no identity."""
    cache_limit()  # one that cannot be read is told before anything is decoded
    key = split.key(preprocess.key)
    if key is None:
        return None
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in f"{split.task}-{split.name}")
    folder = cache_folder("images") / f"{name}-{key[:16]}"
    IN_USE.add(folder)
    return Entry(folder, split, preprocess)


def fill(entry: Entry, told: Callable[[int], None]) -> None:
    """Decode what the cache lacks of a split; `told` the images. Goes on where it was stopped.

    Raises:
        OutputError: the file system refuses, or is full.
    """
    try:
        for number, rows in enumerate(entry.shards()):
            if not entry.file(number).is_file():
                if not entry.keep(number, decode(entry.split, entry.preprocess, rows)):
                    log.warning(FULL, entry.split.task, entry.split.name, number * SHARD)
                    break
                told(len(rows))
    except (OSError, SafetensorError) as error:
        why = error.strerror if isinstance(error, OSError) else "cannot be written, is the disk full?"
        raise OutputError(f"{entry.folder}: {why}; image_cache=false decodes each time anew") from None
    with suppress(OSError):  # a cache that may only be read
        os.utime(entry.folder / ABOUT)


def missing(entry: Entry) -> int:
    """Images that are still to be decoded."""
    return sum(len(rows) for number, rows in enumerate(entry.shards()) if not entry.file(number).is_file())


def unreadable_rows(entry: Entry) -> list[int]:
    """Images of a filled entry that could not be decoded, from the shards' tables of sizes alone."""
    found = []
    for number, rows in enumerate(entry.shards()):
        with suppress(CheckpointError, OSError, KeyError):  # damage is for `read`
            sizes = SafetensorsFile(entry.file(number)).read("sizes")
            found += [rows[i] for i in (sizes[:, 0] == 0).nonzero().flatten().tolist()]
    return found


def write_shard(path: Path, found: Decoded) -> None:
    """Whole or not at all, whoever else writes it."""
    temporary = part_of(path)
    pixels = torch.cat([image.flatten() for image in found.images])
    sizes = torch.tensor([image.shape[1:] for image in found.images], dtype=torch.int32)
    tensors = {"sizes": sizes, "native": found.native, "digests": found.digests, "pixels": pixels}
    try:
        save_file(tensors, temporary, {"crc32": str(checksum(tensors))})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_shard(path: Path, images: int) -> Decoded:
    """A shard's images, views of the mapped file.

    Raises:
        CheckpointError: it is damaged.
        FileNotFoundError: it is not there.
    """
    file = SafetensorsFile(path)
    damaged = CheckpointError(f"{path}: is damaged")
    if set(file.specs) != {"sizes", "native", "digests", "pixels"}:
        raise damaged
    tensors = {name: file.read(name) for name in file.specs}
    if file.metadata.get("crc32") != str(checksum(tensors)) or len(tensors["sizes"]) != images:
        raise damaged
    pixels, found, start = tensors["pixels"], [], 0
    for height, width in tensors["sizes"].tolist():
        stop = start + 3 * height * width
        found.append(pixels[start:stop].view(3, height, width) if stop > start else EMPTY)
        start = stop
    return Decoded(found, tensors["native"], tensors["digests"])


def checksum(tensors: dict[str, Tensor]) -> int:
    """CRC-32 over all values, by name."""
    found = 0
    for name in sorted(tensors):
        found = zlib.crc32(tensors[name].contiguous().view(torch.uint8).flatten().numpy().data, found)
    return found


def entries() -> Iterator[tuple[Path, int, float]]:
    """(folder, bytes, time of last use) of every entry."""
    for folder in sorted(cache_folder("images").iterdir()):
        with suppress(OSError):  # another process has removed it
            if (folder / ABOUT).is_file():
                size = sum(file.stat().st_size for file in folder.iterdir())
                yield folder, size, (folder / ABOUT).stat().st_mtime


def verify(folder: Path) -> list[Path]:
    """The damaged shards of an entry."""
    shards = sorted(folder.glob("[0-9]*.safetensors"))
    try:
        images = int(json.loads((folder / ABOUT).read_text(encoding="utf-8"))["images"])
    except (ValueError, KeyError, TypeError, OSError):
        return [folder / ABOUT, *shards]
    damaged = []
    for path in shards:
        try:
            read_shard(path, min(SHARD, images - SHARD * int(path.stem)))
        except CheckpointError:
            damaged.append(path)
    return damaged


def make_room(wanted: int) -> bool:
    """Remove what was not used for longest until `wanted` bytes more fit the limit, but nothing that is in use.

    False if there is no such room.
    """
    found = sorted(entries(), key=lambda entry: entry[2])
    free = cache_limit() - sum(size for _, size, _ in found)
    for folder, size, _ in found:
        if free >= wanted:
            break
        if folder not in IN_USE:
            log.info("image cache: %s makes room", folder.name)
            shutil.rmtree(folder, ignore_errors=True)
            free += size
    return free >= wanted
