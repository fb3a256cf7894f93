"""torch's own files (`.bin`, `.pt`, `.pth`, `.ckpt`), opened lazily; nothing that they contain is ever run."""

import mmap
import os
import weakref
from pathlib import Path

import torch
from torch import Tensor

from clipfuse.checkpoints.safetensors_file import PAGE, TensorSpec
from clipfuse.checkpoints.torch_legacy import read_legacy
from clipfuse.checkpoints.torch_tree import named
from clipfuse.checkpoints.torch_zip import read_zip
from clipfuse.errors import CheckpointError

ZIP = b"PK"
PICKLE = b"\x80"
TAKES = "takes what torch.save wrote"


class TorchFile:
    """Tensors in a torch file, by the names of its `state_dict()`, whether it holds one or a whole pickled module.

    Both formats are read, that of torch 1.6 and the one before, and TorchScript. Tensors are views of a private
    mapping, as those of a SafetensorsFile; one that is not aligned in the file is copied when it is read.

    `classes` are the classes and functions that a pickled module names; none of them is imported. `attributes` are
    its numbers and short texts by dotted name, `visual.transformer.resblocks.0.attn.num_heads`.

    Raises:
        CheckpointError: not a torch file, damaged or truncated; holds odd tensors, or what is neither a state dict nor
            a module; or asks for what no model needs.
    """

    def __init__(self, path: Path):
        self.path = path
        with path.open("rb") as file:
            if file.seek(0, 2) == 0:
                raise CheckpointError(f"{path}: is empty; {TAKES}")
            self.map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            self.file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self.file)
        start = self.map[:512]
        if not start.startswith((ZIP, PICKLE)):
            raise CheckpointError(f"{path}: {what_it_is(start, len(self.map))}; {TAKES}")
        pickled, places = (read_zip if start.startswith(ZIP) else read_legacy)(self.map, path)
        tree = named(pickled.value, path)
        self.classes: frozenset[str] = pickled.names
        self.attributes = tree.attributes
        self.tensors = tree.tensors
        self.specs = {name: TensorSpec(tensor.shape, tensor.dtype) for name, tensor in self.tensors.items()}
        self.starts = {
            name: places[tensor.storage.key] + tensor.offset * tensor.dtype.itemsize
            for name, tensor in self.tensors.items()
        }

    def read(self, name: str) -> Tensor:
        """The tensor, a view of the mapped file where its address allows."""
        tensor, start = self.tensors[name], self.starts[name]
        if (count := tensor.reach) == 0:
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        if start % tensor.dtype.itemsize:
            raw = bytearray(self.map[start : start + count * tensor.dtype.itemsize])
            flat = torch.frombuffer(raw, dtype=tensor.dtype)
        else:
            flat = torch.frombuffer(self.map, dtype=tensor.dtype, count=count, offset=start)
        return flat.as_strided(tensor.shape, tensor.stride)

    def read_into(self, name: str, start: int, room: memoryview) -> bool:
        """Copy bytes of a contiguous tensor from element `start` on, as many as `room` has; False for others.

        Raises:
            CheckpointError: the file was cut short since it was opened.
        """
        tensor = self.tensors[name]
        if not hasattr(os, "preadv") or not tensor.is_contiguous:
            return False
        at = self.starts[name] + start * tensor.dtype.itemsize
        while len(room):
            if not (got := os.preadv(self.file, [room], at)):
                raise CheckpointError(f"{self.path}: was cut short while it was read")
            room, at = room[got:], at + got
        return True

    def release(self, name: str) -> None:
        """Give the tensor's mapped pages back to the system; they are read again when asked for."""
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        tensor, start = self.tensors[name], self.starts[name]
        nbytes = tensor.reach * tensor.dtype.itemsize
        first, last = -(-start // PAGE) * PAGE, (start + nbytes) // PAGE * PAGE
        if last > first:
            self.map.madvise(mmap.MADV_DONTNEED, first, last - first)


def what_it_is(start: bytes, size: int) -> str:
    """What a file is that is not torch's, by its first bytes."""
    if start.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the file itself; run git lfs pull"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not the file that was to be downloaded"
    if start[8:9] == b"{" and 8 + int.from_bytes(start[:8], "little") <= size:
        return "is a safetensors file; rename it to .safetensors"
    if start[257:262] == b"ustar":
        return "is a tar file, as torch's first versions wrote; load it with torch and save it again"
    return f"is no torch file, or is damaged ({size:,} bytes)"
