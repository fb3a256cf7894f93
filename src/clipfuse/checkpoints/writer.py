"""Writing results: tensors streamed into a file by many threads, folders that appear whole or not at all."""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from clipfuse.checkpoints.safetensors_file import NAMES, TensorSpec
from clipfuse.errors import OutputError

MARK = ".clipfuse"
"""A file in every folder that clipfuse writes: the names of what it wrote there. Nothing else is overwritten."""

HEADROOM = 1 << 20
"""Bytes kept free beside the weights, for the small files of a folder."""


class SafetensorsWriter:
    """A safetensors file under construction; slices of its tensors may be written in any order, from any thread.

    `specs` (name → shape and dtype) fixes the layout: tensors lie in that order, so the file's bytes depend on
    nothing else. Use as a context manager.

    Raises:
        OutputError: no space, no permission.
    """

    def __init__(self, path: Path, specs: Mapping[str, TensorSpec], metadata: Mapping[str, str] | None = None):
        self.path = path
        header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
        self.offsets: dict[str, int] = {}
        end = 0
        for name, spec in specs.items():
            self.offsets[name] = end
            header[name] = {"dtype": NAMES[spec.dtype], "shape": spec.shape, "data_offsets": [end, end + spec.nbytes]}
            end += spec.nbytes
        raw = json.dumps(header, separators=(",", ":")).encode()
        raw += b" " * (-len(raw) % 8)
        self.data_start = 8 + len(raw)
        self.size = self.data_start + end
        check_space(path.parent, self.size)
        with write_errors(path):
            self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            self.pwrite(len(raw).to_bytes(8, "little") + raw, 0)

    def write(self, name: str, values: Tensor, start: int = 0) -> None:
        """Write contiguous `values` (any shape, already of the tensor's dtype) from element `start` of a tensor."""
        if values.numel():
            raw = values.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
            with write_errors(self.path):
                self.pwrite(raw.data, self.data_start + self.offsets[name] + start * values.element_size())

    def pwrite(self, raw: bytes | memoryview, offset: int) -> None:
        view = memoryview(raw)
        while len(view):
            written = os.pwrite(self.file, view, offset)
            view, offset = view[written:], offset + written

    def __enter__(self) -> "SafetensorsWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.file)


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Tell the system's refusals in one line."""
    try:
        yield
    except OSError as error:
        what = "no space left on the device" if error.errno == errno.ENOSPC else error.strerror or error
        raise OutputError(f"{path}: cannot be written: {what}") from None


def check_space(folder: Path, nbytes: int) -> None:
    """Raises OutputError if the file system has less than `nbytes` and a little more free."""
    free = shutil.disk_usage(next(parent for parent in [folder, *folder.absolute().parents] if parent.exists())).free
    if free < nbytes + HEADROOM:
        raise OutputError(f"{folder}: {nbytes + HEADROOM:,} bytes are needed, {free:,} are free")


def check_output(folder: Path, overwrite: bool = False, inputs: Iterable[Path] = ()) -> None:
    """Refuse an output folder that holds something, before anything expensive.

    Raises:
        OutputError: it is a file, or it holds something and `overwrite` is not set; or, whatever `overwrite` says,
            it holds something that clipfuse did not write, or one of the files `inputs`.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file; the output is a folder")
    for path in inputs:
        if folder.resolve() in path.resolve().parents:
            raise OutputError(f"{folder}: holds the input {path.name}; choose another output")
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise OutputError(f"{folder}: is not empty; choose another --out or pass --overwrite")
        known = (folder / MARK).read_text(encoding="utf-8").splitlines() if (folder / MARK).is_file() else []
        strangers = sorted(path.name for path in folder.iterdir() if path.name not in (MARK, *known))
        if strangers:
            raise OutputError(f"{folder}: holds {strangers[0]!r}, which clipfuse did not write; it is not overwritten")
    parent = next(parent for parent in folder.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise OutputError(f"{folder}: cannot be written: {parent} is a file")
    if not os.access(parent, os.W_OK):
        raise OutputError(f"{folder}: cannot be written: no permission in {parent}")


@contextmanager
def new_folder(folder: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary sibling to write into; it takes the name `folder` at the end, or vanishes on any error.

    Raises:
        OutputError: as `check_output`, and whatever the system refuses; or something appeared there meanwhile.
    """
    check_output(folder, overwrite)
    folder = folder.resolve()  # what a link leads to is replaced, not the link
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    made = [parent for parent in folder.parents if not parent.exists()]
    try:
        with write_errors(folder):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        yield temporary
        with write_errors(folder):
            names = sorted(path.name for path in temporary.iterdir())
            (temporary / MARK).write_text("\n".join(names) + "\n", encoding="utf-8")
            put_in_place(temporary, folder, overwrite)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):  # of the parents that were made here, only empty ones go
            for parent in made:
                parent.rmdir()


def put_in_place(temporary: Path, folder: Path, overwrite: bool) -> None:
    """Give `temporary` the name `folder`; what was there goes only if it may be overwritten."""
    if not (folder.is_dir() and any(folder.iterdir())):
        temporary.rename(folder)
        return
    check_output(folder, overwrite)
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    folder.rename(old)
    try:
        temporary.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old)


def part_of(path: Path) -> Path:
    """A name for `path` while it is being written, of nobody else's, whatever machine or container they are on."""
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    temporary = part_of(path)
    with write_errors(path):
        try:
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
