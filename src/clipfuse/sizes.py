"""Bytes as people write them."""

import re

from clipfuse.errors import ConfigError


def as_bytes(size: int | str | None, where: str = "memory") -> int | None:
    """`"2GB"`, `"500 MB"` or a number of bytes; `where` names it in the error. Raises ConfigError."""
    if size is None or (isinstance(size, int) and size > 0):
        return size
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)B?\s*", str(size).upper())
    if not found or not float(found[1]):
        raise ConfigError(f"{where}: takes bytes, as in 2GB or 500MB (found {size!r})")
    return int(float(found[1]) * 1000 ** " KMGT".index(found[2] or " "))
