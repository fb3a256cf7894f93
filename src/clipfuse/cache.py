"""Where clipfuse keeps what it can make again: `$CLIPFUSE_CACHE`, else `$XDG_CACHE_HOME/clipfuse`."""

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

from clipfuse.errors import OutputError
from clipfuse.sizes import as_bytes

LIMIT = "CLIPFUSE_CACHE_LIMIT"
KINDS = ("images", "heads", "scores", "spectra", "states", "hashes", "datasets", "tiny")
"""Folders of the cache."""
DEFAULT_LIMIT = 50 * 10**9
"""Bytes of images that are kept; the eight tasks' test images take about 6, all twenty tasks' about 13 GB."""


def cache_folder(*parts: str) -> Path:
    """A folder of the cache, made if absent."""
    folder = cache_home().joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}); CLIPFUSE_CACHE names another cache") from None
    return folder


def cache_home() -> Path:
    """The cache, whether it is there or not."""
    home = os.environ.get("CLIPFUSE_CACHE") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "clipfuse"
    )
    return Path(home).expanduser()


def sweep(days: float = 7) -> int:
    """Remove what processes that were killed left half-written, if it is older than so many days; bytes freed."""
    freed, before = 0, time.time() - days * 86400
    for kind in KINDS:
        for path in [*(cache_home() / kind).rglob("*.part"), *(cache_home() / kind).rglob("*.parts")]:
            with suppress(OSError):  # its owner has come to an end meanwhile
                if path.stat().st_mtime < before:
                    freed += sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return freed


def cache_limit() -> int:
    """Most bytes of images, from `$CLIPFUSE_CACHE_LIMIT` as in 20GB. Raises ConfigError."""
    return as_bytes(os.environ.get(LIMIT) or None, LIMIT) or DEFAULT_LIMIT
