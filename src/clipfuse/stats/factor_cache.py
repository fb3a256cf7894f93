"""Decompositions kept by content: the same matrix, asked the same of, is decomposed once, with the same bits after.

Off unless inside `with keep_factors(...)`. A key is the digest of the matrix's bytes, its shape, what was asked, and
what the bits of the answer depend on: the algorithm's version, torch, the processor's instructions, the threads.
"""

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

VERSION = 2
"""Of the algorithms in `spectra`; counts up whenever their bits change."""

NAMES = "[0-9a-f]" * 64 + ".safetensors"
"""Files of the store; others in its folder are left alone."""


@dataclass(frozen=True)
class Factors:
    """What a decomposition gave, and whether it took the slow, safe way."""

    tensors: tuple[Tensor, ...]
    fallback: bool = False

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def digest(self) -> str:
        """Of all the values."""
        found = hashlib.sha256()
        for tensor in self.tensors:
            found.update(raw(tensor))
        return found.hexdigest()

    def copy(self) -> "Factors":
        """In memory of its own: nobody can change what is kept."""
        return Factors(tuple(tensor.clone() for tensor in self.tensors), self.fallback)


class FactorStore:
    """Keeps the factors used last: in memory, and in a folder if there is one. Any number of threads and processes."""

    def __init__(self, folder: Path | None, memory: int, disk: int):
        self.folder, self.memory, self.disk = folder, memory, disk
        if folder is not None:
            with suppress(OSError):  # then nothing can be written or read there
                folder.mkdir(parents=True, exist_ok=True)
        self.made = self.reused = 0
        self.lock = threading.Lock()
        self.kept: OrderedDict[str, Factors] = OrderedDict()
        self.in_memory = 0
        self.on_disk = sum(size for _, size, _ in self.files())

    def get(self, key: str, compute: Callable[[], Factors], device: torch.device) -> Factors:
        """The factors of a key: kept ones, or those that `compute` makes."""
        with self.lock:
            found = self.kept.get(key)
        found = found or self.read(key)
        with self.lock:
            self.reused += found is not None
            self.made += found is None
        if found is None:
            found = compute()
            self.write(key, found)
        self.remember(key, found)
        return Factors(tuple(tensor.to(device) for tensor in found.copy().tensors), found.fallback)

    def remember(self, key: str, factors: Factors) -> None:
        with self.lock:
            if key not in self.kept:
                self.kept[key] = factors
                self.in_memory += factors.nbytes
            self.kept.move_to_end(key)
            while self.in_memory > self.memory:
                self.in_memory -= self.kept.popitem(last=False)[1].nbytes

    def read(self, key: str) -> Factors | None:
        """From the folder; None if it is not there or damaged."""
        if self.folder is None:
            return None
        path = self.folder / f"{key}.safetensors"
        with suppress(OSError, SafetensorError, KeyError, TypeError):
            with safe_open(path, "pt") as file:
                facts = file.metadata()
                tensors = tuple(file.get_tensor(str(place)) for place in range(int(facts["tensors"])))
            factors = Factors(tensors, facts["fallback"] == "True").copy()
            if factors.digest == facts["digest"]:
                os.utime(path)
                return factors
        return None

    def write(self, key: str, factors: Factors) -> None:
        """Into the folder, whole or not at all; where that is refused, nothing is kept."""
        if self.folder is None or factors.nbytes > self.disk:
            return
        facts = {"digest": factors.digest, "tensors": str(len(factors.tensors)), "fallback": str(factors.fallback)}
        temporary = self.folder / f".{key}.{os.getpid()}.{threading.get_ident()}.part"
        with suppress(OSError, SafetensorError):
            try:
                named = {str(place): tensor.cpu().contiguous() for place, tensor in enumerate(factors.tensors)}
                save_file(named, temporary, facts)
                temporary.replace(self.folder / f"{key}.safetensors")
            finally:
                temporary.unlink(missing_ok=True)
            with self.lock:
                self.on_disk += factors.nbytes
                if self.on_disk > self.disk:
                    self.prune()

    def files(self) -> list[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of every file of the store."""
        found = []
        for path in self.folder.glob(NAMES) if self.folder else ():
            with suppress(FileNotFoundError):  # another process has pruned it
                stat = path.stat()
                found.append((stat.st_mtime, stat.st_size, path))
        return found

    def prune(self) -> None:
        """Remove the files that were not used for longest, down to nine tenths of what may be kept."""
        files = sorted(self.files())
        self.on_disk = sum(size for _, size, _ in files)
        for _, size, path in files:
            if self.on_disk <= 0.9 * self.disk:
                break
            path.unlink(missing_ok=True)
            self.on_disk -= size


active: FactorStore | None = None
"""The store of the innermost `keep_factors`, seen by every thread."""


@contextmanager
def keep_factors(folder: Path | None = None, memory: int = 64 << 20, disk: int = 4 << 30) -> Iterator[FactorStore]:
    """Keep decompositions while inside: up to `memory` bytes in memory, and `disk` bytes in `folder` for later runs.

    The store counts what was `made` and `reused`.
    """
    global active
    outer, active = active, FactorStore(folder, memory, disk)
    try:
        yield active
    finally:
        active = outer


def kept(matrix: Tensor, asked: str, compute: Callable[[], Factors]) -> Factors:
    """What `compute` makes of a contiguous matrix, unless it is kept."""
    if active is None:
        return compute()
    where = f"{matrix.device.type} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()}"
    facts = f"{VERSION} {torch.__version__} {where} {asked} {matrix.dtype} {tuple(matrix.shape)} "
    digest = hashlib.sha256(facts.encode())
    digest.update(raw(matrix))
    return active.get(digest.hexdigest(), compute, matrix.device)


def raw(tensor: Tensor) -> memoryview:
    """The bytes of a tensor."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
