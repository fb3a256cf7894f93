"""Where clipfuse keeps what it can make again: `$CLIPFUSE_CACHE`, else `$XDG_CACHE_HOME/clipfuse`."""

import os
from pathlib import Path

from clipfuse.errors import OutputError
from clipfuse.sizes import as_bytes

LIMIT = "CLIPFUSE_CACHE_LIMIT"
KINDS = ("images", "heads", "scores", "spectra", "hashes", "datasets", "tiny")
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


def cache_limit() -> int:
    """Most bytes of images, from `$CLIPFUSE_CACHE_LIMIT` as in 20GB. Raises ConfigError."""
    return as_bytes(os.environ.get(LIMIT) or None, LIMIT) or DEFAULT_LIMIT
