"""Tensors as torch's pickles describe them: views of storages, checked before anything is read.

A pickle's numbers may be anything, so that everything here takes Any and looks at it.
"""

import re
from dataclasses import dataclass
from math import prod
from pickle import UnpicklingError
from typing import Any

import torch

from clipfuse.checkpoints.safetensors_file import DTYPES

MAX_DIMENSIONS = 64
MAX_COUNT = 1 << 48

READABLE = {
    str(dtype): dtype
    for dtype in (*DTYPES.values(), torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2)
}
STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "QInt8": torch.int8,
    "QUInt8": torch.uint8,
    "QInt32": torch.int32,
    "Untyped": torch.uint8,
}
STORAGE = re.compile(rf"torch\.((cuda|storage)\.)?_?(?P<kind>{'|'.join(STORAGES)})Storage")


@dataclass(frozen=True, eq=False, slots=True)
class Storage:
    """Values that tensors are views of: `numel` of them, under `key` in the file."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, eq=False, slots=True)
class StoredTensor:
    """A view of a storage, checked to lie inside it; offset and strides count elements of `dtype`."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def reach(self) -> int:
        """Elements of the storage from the first to the last; 0 for an empty tensor."""
        return reach(self.shape, self.stride)

    @property
    def is_contiguous(self) -> bool:
        step = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and stride != step:
                return False
            step *= size
        return True


@dataclass(frozen=True, eq=False, slots=True)
class OddTensor:
    """A tensor that is not read; `what` says why: `is sparse`."""

    what: str


def reach(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if prod(shape) else 0


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_COUNT


def rebuild(storage: Any, offset: Any, shape: Any, stride: Any, dtype: Any) -> StoredTensor | OddTensor:
    """A view of a storage, whose numbers are checked."""
    if not (type(storage) is Storage and type(shape) is type(stride) is tuple):
        raise UnpicklingError("has a tensor without storage, shape or strides")
    if len(shape) != len(stride) or len(shape) > MAX_DIMENSIONS:
        raise UnpicklingError(f"has a tensor of {len(shape)} dimensions and {len(stride)} strides")
    counts = (offset, *shape, *stride)
    if not all(is_count(count) for count in counts) or prod(size or 1 for size in shape) >= MAX_COUNT:
        raise UnpicklingError("has a tensor whose offset, shape or strides are no counts, or too large")
    if not isinstance(dtype, torch.dtype):
        return OddTensor("has a dtype that is not known")
    if str(dtype) not in READABLE:
        return OddTensor(f"has dtype {dtype}")
    numel = prod(shape)
    if numel and (offset + reach(shape, stride)) * dtype.itemsize > storage.nbytes:
        raise UnpicklingError(f"has a tensor that reaches beyond its storage of {storage.nbytes:,} bytes")
    if numel * dtype.itemsize > storage.nbytes:
        return OddTensor("has fewer values stored than its shape says")
    return StoredTensor(storage, offset, shape, stride, dtype)


def rebuild_v2(
    storage: Any, offset: Any, shape: Any, stride: Any, grad: Any = None, hooks: Any = None, flags: Any = None
) -> StoredTensor | OddTensor:
    return rebuild_v3(storage, offset, shape, stride, grad, hooks, getattr(storage, "dtype", None), flags)


def rebuild_v3(
    storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, flags: Any = None
) -> StoredTensor | OddTensor:
    return OddTensor("is a conjugated or negated view") if flags else rebuild(storage, offset, shape, stride, dtype)
