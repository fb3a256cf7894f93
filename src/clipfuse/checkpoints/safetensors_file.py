"""safetensors files, opened lazily: a checked header, and tensors that are views of the mapped file."""

import json
import mmap
import os
import weakref
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipfuse.checkpoints.json_file import no_repeats
from clipfuse.errors import CheckpointError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 16 << 20
"""Room for 100,000 tensors; safetensors allows 100 MB, which as JSON can take gigabytes of memory to read."""
MAX_NAME = 500
MAX_DIMENSIONS = 64
PAGE = mmap.ALLOCATIONGRANULARITY


@dataclass(frozen=True)
class TensorSpec:
    """What is known of a tensor without reading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes, unpadded."""
        return self.numel * self.dtype.itemsize


class SafetensorsFile:
    """One safetensors file: `specs` by name and `read(name)`; nothing is read until asked for.

    Tensors are views of a private mapping: the file cannot be changed through them, and they cost no anonymous
    memory as long as nobody writes to them.

    Raises:
        CheckpointError: not a safetensors file, truncated, or with a header that contradicts itself.
    """

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as file:
            self.size = file.seek(0, 2)
            file.seek(0)
            header, self.data_start = read_header(path, file.read(8), file, self.size)
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self.file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.file)
        self.metadata: dict[str, str] = read_metadata(path, header.pop("__metadata__", None) or {})
        self.specs: dict[str, TensorSpec] = {}
        self.offsets: dict[str, int] = {}
        for name, entry in header.items():
            self.specs[name], self.offsets[name] = read_entry(path, name, entry)
        self.check_layout()

    def check_layout(self) -> None:
        end = 0
        for name in sorted(self.specs, key=lambda name: (self.offsets[name], self.specs[name].nbytes)):
            if self.offsets[name] != end:
                raise CheckpointError(f"{self.path}: tensor {name!r} begins at byte {self.offsets[name]}, not at {end}")
            end += self.specs[name].nbytes
        found = self.size - self.data_start
        if end != found:
            state = "truncated" if found < end else "too long"
            raise CheckpointError(f"{self.path}: {state}: holds {found:,} bytes of tensors, its header names {end:,}")

    def read(self, name: str) -> Tensor:
        """The tensor, a view of the mapped file."""
        spec = self.specs[name]
        if spec.numel == 0:
            return torch.empty(spec.shape, dtype=spec.dtype)
        start = self.data_start + self.offsets[name]
        if start % spec.dtype.itemsize:
            raw = bytearray(self.map[start : start + spec.nbytes])
            return torch.frombuffer(raw, dtype=spec.dtype).reshape(spec.shape)
        flat = torch.frombuffer(self.map, dtype=spec.dtype, count=spec.numel, offset=start)
        return flat.reshape(spec.shape)

    def read_into(self, name: str, start: int, room: memoryview) -> bool:
        """Copy bytes of a tensor from element `start` on, as many as `room` has; False where the system cannot.

        Raises:
            CheckpointError: the file was cut short since it was opened.
        """
        if not hasattr(os, "preadv"):
            return False
        at = self.data_start + self.offsets[name] + start * self.specs[name].dtype.itemsize
        while len(room):
            if not (got := os.preadv(self.file, [room], at)):
                raise CheckpointError(f"{self.path}: was cut short while it was read")
            room, at = room[got:], at + got
        return True

    def release(self, name: str) -> None:
        """Give the tensor's mapped pages back to the system; they are read again when asked for."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        start = self.data_start + self.offsets[name]
        first, last = -(-start // PAGE) * PAGE, (start + self.specs[name].nbytes) // PAGE * PAGE
        if last > first:
            self.map.madvise(mmap.MADV_DONTNEED, first, last - first)


def read_header(path: Path, first: bytes, file: Any, size: int) -> tuple[dict[str, Any], int]:
    """The JSON header and the offset at which tensors begin."""
    length = int.from_bytes(first, "little") if len(first) == 8 else -1
    if length < 2 or length > MAX_HEADER or 8 + length > size:
        what = "is empty" if size == 0 else f"is no safetensors file or is truncated ({size:,} bytes)"
        if first == b"version ":
            what = "is a git-lfs pointer, not the file itself; run git lfs pull"
        raise CheckpointError(f"{path}: {what}")
    try:
        header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=no_repeats)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its header is not the JSON of a safetensors file ({error})") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: its header is not the JSON of a safetensors file")
    return header, 8 + length


def read_metadata(path: Path, found: Any) -> dict[str, str]:
    if not isinstance(found, dict) or not all(type(value) is str for value in found.values()):
        raise CheckpointError(f"{path}: its __metadata__ is no mapping of texts")
    return found


def read_entry(path: Path, name: str, entry: Any) -> tuple[TensorSpec, int]:
    """Spec and offset of one header entry, checked against each other."""
    if not name.isprintable() or len(name) > MAX_NAME:
        raise CheckpointError(f"{path}: {name[:80]!r} is no name of a tensor: {MAX_NAME} printable characters at most")
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        numbers = [*shape, start, end]
        if type(dtype) is not str or not all(type(number) is int and 0 <= number < 1 << 48 for number in numbers):
            raise ValueError
        if len(shape) > MAX_DIMENSIONS or prod(size or 1 for size in shape) >= 1 << 48:
            raise ValueError
    except (TypeError, ValueError, KeyError):
        raise CheckpointError(f"{path}: tensor {name!r} has no dtype, shape and offsets, or impossible ones") from None
    if dtype not in DTYPES:
        raise CheckpointError(f"{path}: tensor {name!r} has dtype {dtype!r:.60}; known are {', '.join(DTYPES)}")
    spec = TensorSpec(shape, DTYPES[dtype])
    if end - start != spec.nbytes:
        raise CheckpointError(f"{path}: tensor {name!r} takes {end - start} bytes, its shape says {spec.nbytes}")
    return spec, start
