"""Where a method that takes steps goes on after an interruption: files of the cache, by all that steps depend on."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from clipfuse.cache import cache_folder
from clipfuse.checkpoints.checkpoint import Checkpoint
from clipfuse.checkpoints.writer import check_space, part_of, write_errors
from clipfuse.errors import OutputError
from clipfuse.version import __version__


@dataclass(frozen=True)
class Kept:
    """States of one merge, one a title; nothing is kept where the models are not files."""

    key: str | None = None

    def path(self, title: str) -> Path | None:
        return cache_folder("states") / f"{self.key}-{slug(title)}.safetensors" if self.key else None

    def load(self, title: str, tensors: Mapping[str, Tensor]) -> int:
        """Put back into `tensors` what `save` wrote; how many steps that is after, 0 where there is nothing."""
        path = self.path(title)
        if path is None or not path.is_file():
            return 0
        with suppress(OSError, SafetensorError, ValueError, KeyError, TypeError), safe_open(path, "pt") as file:
            done = int(file.metadata()["done"])
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            if shapes == {name: tuple(value.shape) for name, value in tensors.items()}:
                with torch.no_grad():
                    for name, value in tensors.items():
                        value.copy_(file.get_tensor(name))
                return done
        path.unlink(missing_ok=True)  # damaged, or of another version
        return 0

    def save(self, title: str, tensors: Mapping[str, Tensor], done: int) -> bool:
        """Write the state after `done` steps, whole or not at all; whether there is a place for it.

        Raises:
            OutputError: no space, no permission.
        """
        path = self.path(title)
        if path is None:
            return False
        held = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        check_space(path.parent, sum(value.nbytes for value in held.values()))
        temporary = part_of(path)
        try:
            with write_errors(path):
                save_file(held, temporary, {"done": str(done)})
                temporary.replace(path)
        except SafetensorError as error:
            raise OutputError(f"{path}: cannot be written ({error})") from None
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def clear(self) -> None:
        """Remove all states of this merge: it is done. Inside `states_held`, at its end."""
        if held := HELD.get():
            held.append(self)
        elif self.key:
            for path in cache_folder("states").glob(f"{self.key}-*.safetensors"):
                path.unlink(missing_ok=True)


HELD: ContextVar["list[Kept] | None"] = ContextVar("HELD", default=None)


@contextmanager
def states_held() -> Iterator[None]:
    """Inside, states of merges that are done stay: until the end, or where it fails for the next call."""
    held: list[Kept] = [Kept()]
    token = HELD.set(held)
    try:
        yield
    finally:
        HELD.reset(token)
    for kept in held:
        kept.clear()


def kept_for(checkpoints: Sequence[Checkpoint], facts: Any) -> Kept:
    """By files (place, size, time of change), `facts`, and what else the bits of forward passes depend on."""
    files = []
    for checkpoint in checkpoints:
        if not checkpoint.files:
            return Kept()
        found = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in checkpoint.files]
        files.append(found)
    versions = [__version__, torch.__version__, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability()]
    tree = json.dumps([files, versions, facts], sort_keys=True, default=str)
    return Kept(hashlib.sha256(tree.encode()).hexdigest()[:32])


def slug(title: str) -> str:
    """A title as part of a file's name."""
    return "".join(c if c.isalnum() else "_" for c in title)
