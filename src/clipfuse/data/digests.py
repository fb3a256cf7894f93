"""What a split is, as one number: from the digests of its encoded images and its labels, block by block."""

import hashlib
from collections.abc import Iterable

from torch import Tensor

from clipfuse.shapes import Int, UInt8


def block_digest(digests: UInt8[Tensor, "image 32"], labels: Int[Tensor, "image"]) -> bytes:
    """sha256 over sha256 of the encoded images and the labels, of a block's readable images."""
    return hashlib.sha256(digests.numpy().tobytes() + labels.numpy().tobytes()).digest()


def split_digest(blocks: Iterable[bytes]) -> str:
    """The fingerprint of a split, hex, from its blocks' digests in order."""
    return hashlib.sha256(b"".join(blocks)).hexdigest()
