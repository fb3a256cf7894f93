"""Forward passes: batches that fit the memory, and the precision of their products."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from clipfuse.errors import ModelError

log = logging.getLogger(__name__)


KEPT = 32 << 20
"""Bytes of the largest block that glibc keeps when it is freed."""


def automatic_batch(device: torch.device, widest: int = 0) -> int:
    """Images a forward pass where nobody says: by the type of device and the model's shape, so always the same.

    A GPU is given enough to be busy, and less if it runs out of memory. On the CPU 32, or fewer where the largest
    activation (`widest` bytes an image) would not be kept by the allocator and come in fresh pages each time:
    benchmarks/evaluate.py prints the curve.
    """
    if device.type == "cuda":
        return 512
    fitting = KEPT // widest if widest else 32
    return max(1, 1 << (min(32, fitting).bit_length() - 1)) if fitting else 1


class Batches:
    """Runs a function over rows in batches; one that does not fit the memory halves them for good."""

    def __init__(self, size: int, model: str):
        self.size, self.model = size, model

    def run(self, work: Callable[[int, int], dict[str, Tensor]], rows: int) -> list[dict[str, Tensor]]:
        """`work(start, stop)` for all rows, in order.

        Raises:
            ModelError: a single image does not fit the memory.
        """
        found, start = [], 0
        while start < rows:
            try:
                found.append(work(start, min(start + self.size, rows)))
                start += self.size
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                if self.size == 1:
                    raise ModelError(f"{self.model}: one image does not fit the memory of the device") from None
                self.halve()
        return found

    def halve(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.size //= 2
        log.warning("%s: out of memory; going on with %d images a forward pass", self.model, self.size)


def out_of_memory(error: RuntimeError) -> bool:
    """CUDA has a class for it, its libraries, the CPU's allocator and MPS have words."""
    words = ("can't allocate memory", "ALLOC_FAILED", "MPS backend out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


@contextmanager
def products(precision: str) -> Iterator[None]:
    """Inside, CUDA multiplies float32 in TF32 if `precision` says so, and exactly otherwise."""
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn
    newer = hasattr(matmul, "fp32_precision")  # torch 2.9; the older switches then may only be read
    places: list[tuple[Any, str]] = [(matmul, "allow_tf32"), (conv, "allow_tf32")]
    if newer:
        places = [(matmul, "fp32_precision"), (conv.conv, "fp32_precision")]  # type: ignore[attr-defined]
    wanted = precision == "tf32"
    before = [getattr(place, name) for place, name in places]
    try:
        for place, name in places:
            setattr(place, name, ("tf32" if wanted else "ieee") if newer else wanted)
        yield
    finally:
        for (place, name), value in zip(places, before, strict=True):
            setattr(place, name, value)
