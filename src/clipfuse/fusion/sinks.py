"""Where results go: tensors in memory, and scratch in a temporary file that is mapped and costs no memory."""

import mmap
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Protocol, runtime_checkable

import torch
from torch import Tensor

from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.checkpoints.writer import check_space, write_errors
from clipfuse.errors import OutputError


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
    with scratch_file(folder or Path(tempfile.gettempdir()), sum(spec.nbytes for spec in specs.values())) as file:
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


def scratch_file(folder: Path, size: int) -> IO[bytes]:
    """A file without a name whose room is reserved where the system can: a full disk is told here, not at a later page.

    Raises:
        OutputError: no space for it.
    """
    try:
        check_space(folder, size)
        with write_errors(folder), ExitStack() as held:
            file = held.enter_context(tempfile.TemporaryFile(dir=folder))
            file.truncate(max(size, 1))
            if size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            held.pop_all()
            return file
    except OutputError as error:
        raise OutputError(f"{error} (for scratch; TMPDIR names another folder)") from None
