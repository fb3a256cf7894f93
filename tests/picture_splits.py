"""Splits of made-up pictures, and encoders that are one matrix, for tests of data and evaluation."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipfuse.data import Preprocess, Split
from clipfuse.heads import Head

PREPROCESS = Preprocess(8, 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def picture_bytes(seed: int, width: int = 8, height: int = 8) -> bytes:
    """A PNG of noise."""
    file, random = io.BytesIO(), np.random.default_rng(seed)
    Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def make_split(name: str, count: int, seed: int = 0, classes: int = 3, size: tuple[int, int] = (8, 8)) -> Split:
    """A split in memory that says where it comes from, so that it can be cached."""
    raw = [picture_bytes(seed * 100_000 + i, *size) for i in range(count)]
    labels = torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return Split(name, "test", labels, raw.__getitem__, lambda i: f"{name}[{i}]", {"made up": name, "seed": seed})


@dataclass
class Linear:
    """An encoder that is one matrix; `watch` is called with every batch."""

    matrix: Tensor
    base: str = "b"
    needs_task_id: bool = False
    bytes: int = 100
    widest: int = 0
    watch: Callable[[Tensor], None] = lambda pixels: None

    def features(self, pixels: Tensor, task: str | None) -> Tensor:
        self.watch(pixels)
        return pixels.flatten(1) @ self.matrix

    def identity(self) -> str:
        return str(self.matrix.double().sum().item())


def matrices(names: str, seed: int = 0, side: int = 8) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(3 * side * side, 5, generator=generator) for name in names}


def make_head(seed: int = 0, classes: int = 3, base: str = "b") -> Head:
    rows = torch.randn(classes, 5, generator=torch.Generator().manual_seed(seed))
    return Head(torch.nn.functional.normalize(rows, dim=-1), 10.0, base)
