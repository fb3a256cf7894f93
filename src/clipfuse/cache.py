"""Where clipfuse keeps what it can make again: `$CLIPFUSE_CACHE`, else `$XDG_CACHE_HOME/clipfuse`."""

import os
from pathlib import Path

from clipfuse.errors import OutputError


def cache_folder(*parts: str) -> Path:
    """A folder of the cache, made if absent."""
    home = os.environ.get("CLIPFUSE_CACHE") or Path(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "clipfuse"
    )
    folder = Path(home).expanduser().joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be made ({error.strerror}); CLIPFUSE_CACHE names another cache") from None
    return folder
