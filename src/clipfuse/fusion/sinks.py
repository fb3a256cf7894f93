"""Where results go: tensors in memory, and scratch in a temporary file that is mapped and costs no memory."""

import mmap
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.checkpoints.writer import check_space, write_errors


@runtime_checkable
class Sink(Protocol):
    """Where results go; slices come in any order and from any thread."""

    def write(self, name: str, values: Tensor, start: int = 0) -> None: ...


class TensorSink:
    """Results into contiguous `tensors` by name."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = tensors

    @classmethod
    def empty(cls, specs: Mapping[str, TensorSpec]) -> "TensorSink":
        """A sink into new memory."""
        return cls({name: torch.empty(spec.shape, dtype=spec.dtype) for name, spec in specs.items()})

    def write(self, name: str, values: Tensor, start: int = 0) -> None:
        self.tensors[name].view(-1)[start : start + values.numel()] = values.reshape(-1)


@contextmanager
def scratch(specs: Mapping[str, TensorSpec], folder: Path | None = None) -> Iterator[dict[str, Tensor]]:
    """Tensors of zeros in a file without a name in `folder` (the system's temporary one by default), gone at the end.

    The file is mapped: the system may write its pages out, so they are no anonymous memory.

    Raises:
        OutputError: no space for it.
    """
    total = sum(spec.nbytes for spec in specs.values())
    where = folder or Path(tempfile.gettempdir())
    check_space(where, total)
    with write_errors(where), tempfile.TemporaryFile(dir=where) as file:
        file.truncate(max(total, 1))
        room = mmap.mmap(file.fileno(), 0)
        tensors: dict[str, Tensor] = {}
        at = 0
        for name, spec in specs.items():
            if spec.numel:
                flat = torch.frombuffer(room, dtype=spec.dtype, count=spec.numel, offset=at)
                tensors[name] = flat.view(spec.shape)
            else:
                tensors[name] = torch.empty(spec.shape, dtype=spec.dtype)
            at += spec.nbytes
        yield tensors
