"""Corrupting preprocessed images: each image has random numbers of its own, by its content and not by its place."""

import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from clipfuse.cores import available_cores
from clipfuse.data.corruptions import corrupt
from clipfuse.shapes import UInt8


@dataclass(frozen=True)
class Corruption:
    """One corruption of `clipfuse.data.corruptions` at one severity, 1 to 5."""

    name: str
    severity: int
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.name} {self.severity}"


def corrupt_all(
    pixels: UInt8[Tensor, "image 3 side side"], corruption: Corruption, digests: UInt8[Tensor, "image 32"]
) -> UInt8[Tensor, "image 3 side side"]:
    """Corrupted copies; `digests` of the images' encoded bytes seed them."""
    key = [corruption.seed, zlib.crc32(corruption.name.encode()), corruption.severity]
    found = torch.empty_like(pixels, memory_format=torch.contiguous_format)

    def work(row: int) -> None:
        seed: Sequence[int] = [*key, int.from_bytes(digests[row, :8].numpy().tobytes(), "little")]
        image = pixels[row].permute(1, 2, 0).contiguous().numpy()
        found[row] = torch.from_numpy(corrupt(image, corruption.name, corruption.severity, seed)).permute(2, 0, 1)

    with ThreadPoolExecutor(available_cores()) as threads:
        list(threads.map(work, range(len(pixels))))
    return found
