"""What a split's images and labels are, as one number: the same that evaluation writes into its scores."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor

from clipfuse.checkpoints.safetensors_file import SafetensorsFile
from clipfuse.cores import available_cores
from clipfuse.data.blocks import ImageSet, describe
from clipfuse.data.decode import read
from clipfuse.data.digests import block_digest, split_digest
from clipfuse.errors import CheckpointError, TaskError
from clipfuse.shapes import Bool, UInt8


def fingerprint(images: ImageSet) -> str:
    """sha256 over the encoded images and labels, hex; images that are skipped as unreadable do not count.

    No pixels are read: digests come from the image cache, unchecked, else the encoded bytes are hashed. Only where
    unreadable images are to be skipped and are not in the cache are they decoded, to see which these are.

    Raises:
        TaskError: images that cannot be read. Those that do not decode are noticed in the cache only.
    """
    return split_digest(block_fingerprint(images, number) for number in range(images.count))


def block_fingerprint(images: ImageSet, number: int) -> bytes:
    """Digest of one block."""
    rows = images.rows(number)
    if (kept := cached_digests(images, number)) is not None:
        digests, readable = kept
    elif images.unreadable == "skip":
        found = images.decoded(number)
        digests, readable = found.digests, found.readable()
    else:
        digests = hashed(images, rows)
        readable = torch.ones(len(rows), dtype=torch.bool)
    if not readable.all() and images.unreadable == "error":
        raise TaskError(describe(images, [rows[i] for i in (~readable).nonzero().flatten().tolist()], rows.stop))
    labels = torch.tensor([images.split.labels[row] for row in rows], dtype=torch.int64)
    return block_digest(digests[readable], labels[readable])


def cached_digests(images: ImageSet, number: int) -> tuple[UInt8[Tensor, "image 32"], Bool[Tensor, "image"]] | None:
    """sha256 of each image of a shard, and which can be read; None where the cache lacks it or it is damaged."""
    if images.entry is None:
        return None
    with suppress(CheckpointError, OSError, KeyError):
        file, count = SafetensorsFile(images.entry.file(number)), len(images.rows(number))
        digests, sizes = file.read("digests"), file.read("sizes")
        if digests.shape == (count, 32) and digests.dtype == torch.uint8 and sizes.shape == (count, 2):
            return digests, (sizes > 0).all(1)
    return None


def hashed(images: ImageSet, rows: range) -> UInt8[Tensor, "image 32"]:
    """sha256 of each image's encoded bytes."""
    with ThreadPoolExecutor(available_cores()) as threads:
        found = threads.map(lambda row: hashlib.sha256(read(images.split, row)).digest(), rows)
        return torch.from_numpy(np.frombuffer(bytearray(b"".join(found)), np.uint8).reshape(len(rows), 32))
