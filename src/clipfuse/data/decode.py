"""Encoded images → what is kept of them: preprocessed, or as they are where that is smaller."""

import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from clipfuse.cores import available_cores
from clipfuse.data.preprocess import Preprocess, picture, planes
from clipfuse.data.splits import Split
from clipfuse.errors import TaskError
from clipfuse.shapes import Bool, UInt8

UNREADABLE = (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError)
"""What Pillow raises for bytes that are no whole image."""

EMPTY = torch.empty(3, 0, 0, dtype=torch.uint8)
"""Stands for an image that cannot be read."""


@dataclass(frozen=True)
class Decoded:
    """Images of a split, in order."""

    images: Sequence[Tensor]
    """(3, height, width) uint8 each, empty where the image cannot be read."""
    native: Bool[Tensor, "image"]
    """Images that are kept as they are, still to be resized."""
    digests: UInt8[Tensor, "image 32"]
    """sha256 of each image's encoded bytes."""

    def readable(self) -> Bool[Tensor, "image"]:
        return torch.tensor([image.numel() > 0 for image in self.images], dtype=torch.bool)


def decode(split: Split, preprocess: Preprocess, rows: Sequence[int]) -> Decoded:
    """Read and decode the images `rows`, on all cores. Raises TaskError for files that cannot be read at all."""

    def load(row: int) -> tuple[Tensor, bool, bytes]:
        raw = read(split, row)
        try:
            image = Image.open(io.BytesIO(raw)).convert("RGB")
            small = preprocess.small(image)
            return planes(image) if small else preprocess.pixels(image), small, hashlib.sha256(raw).digest()
        except UNREADABLE:
            return EMPTY, False, hashlib.sha256(raw).digest()

    with ThreadPoolExecutor(available_cores()) as threads:
        found = list(threads.map(load, rows))
    digests = torch.frombuffer(bytearray(b"".join(digest for _, _, digest in found)), dtype=torch.uint8)
    return Decoded(
        [image for image, _, _ in found], torch.tensor([small for _, small, _ in found]), digests.view(-1, 32)
    )


def read(split: Split, row: int) -> bytes:
    """An image's encoded bytes. Raises TaskError where the file system fails: that says nothing about the image."""
    try:
        return split.read(row)
    except OSError as error:
        raise TaskError(f"{split.task}: {split.label_of(row)}: cannot be read ({error.strerror or error})") from None


def finish(
    images: Sequence[Tensor], native: Sequence[bool], preprocess: Preprocess, device: torch.device
) -> UInt8[Tensor, "image 3 crop crop"]:
    """Preprocessed pixels on the device: with Pillow on the CPU, on CUDA with the same bits and no detour.

    Raises:
        torch.OutOfMemoryError: they do not fit the device.
    """
    side = preprocess.crop
    if device.type == "cuda":
        if not any(native) and (whole := one_view(images)) is not None:
            return onto(whole, device)
        found = torch.empty(len(images), 3, side, side, dtype=torch.uint8, device=device)
        for rows in by_shape(images, native):
            stack = onto(torch.stack([images[row] for row in rows]), device)
            if native[rows[0]]:
                from clipfuse.data.exact_resize import resize_crop

                stack = resize_crop(stack, preprocess.size, side)
            found[torch.tensor(rows, device=device)] = stack
        return found
    if not any(native) and (whole := one_view(images)) is not None:
        return whole
    found = torch.empty(len(images), 3, side, side, dtype=torch.uint8)

    def put(row: int) -> None:
        found[row] = preprocess.pixels(picture(images[row])) if native[row] else images[row]

    with ThreadPoolExecutor(available_cores()) as threads:
        list(threads.map(put, range(len(images))))
    return found if device.type == "cpu" else found.to(device)


def by_shape(images: Sequence[Tensor], native: Sequence[bool]) -> list[list[int]]:
    """Rows that can be stacked, together."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for row, image in enumerate(images):
        groups.setdefault((image.shape, native[row]), []).append(row)
    return list(groups.values())


def onto(values: Tensor, device: torch.device) -> Tensor:
    """A copy to a CUDA device that does not wait for it."""
    return values.pin_memory().to(device, non_blocking=True)


def one_view(images: Sequence[Tensor]) -> Tensor | None:
    """Images of one shape that lie one after the other in memory, as one tensor without a copy."""
    first, size = images[0], images[0].numel()
    for row, image in enumerate(images):
        if image.shape != first.shape or image.data_ptr() != first.data_ptr() + row * size:
            return None
    try:
        return first.as_strided((len(images), *first.shape), (size, *first.stride()))
    except RuntimeError:  # neighbours by chance, in storages of their own
        return None
