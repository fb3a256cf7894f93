"""sha256 of weights files: from the hub's etag, else from a cache keyed by the file's identity, else computed aside."""

import hashlib
import os
import re
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from clipfuse.cache import cache_folder
from clipfuse.checkpoints.writer import write_text
from clipfuse.errors import OutputError

CHUNK = 8 << 20


def known_hash(path: Path) -> str | None:
    """The file's sha256 if it is known without reading the file."""
    blob = path.resolve()
    if blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name) and hub_cache() in blob.parents:
        return blob.name
    note = note_of(path)
    return note.read_text() if note and note.is_file() else None


def hub_cache() -> Path:
    """Where the hub's client keeps files under their hashes; nowhere else a name is taken for a hash."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser().resolve()


def compute_hash(path: Path) -> str:
    """The file's sha256, remembered for next time."""
    if found := known_hash(path):
        return found
    note, digest = note_of(path), hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    if note and note == note_of(path):
        with suppress(OutputError):  # then it is computed again next time
            write_text(note, digest.hexdigest())
    return digest.hexdigest()


def compute_in_background(paths: Iterable[Path]) -> threading.Thread:
    """Hash files one after the other in a thread that nothing waits for; what it finishes is in the cache."""

    def work(todo: list[Path]) -> None:
        for path in todo:
            with suppress(OSError):
                compute_hash(path)

    thread = threading.Thread(target=work, args=(list(paths),), daemon=True, name="clipfuse-hashes")
    thread.start()
    return thread


def note_of(path: Path) -> Path | None:
    """Where the hash of this very file (device, inode, size, time of change) is remembered; None without a cache."""
    stat = path.stat()
    try:
        return cache_folder("hashes") / f"{stat.st_dev}-{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}"
    except OutputError:  # nowhere to write: merging goes on without
        return None
