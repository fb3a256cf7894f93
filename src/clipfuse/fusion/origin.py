"""Where a rule that is not clipfuse's own is from."""

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Origin:
    """The file that a rule which is not clipfuse's own was registered from."""

    file: str
    """Name, without its folder: recipes are published."""
    sha256: str | None
    """Of the file when the rule was registered; None if it is no file (a notebook's cell)."""


def origin_of(function: Callable[..., Any]) -> Origin | None:
    """The file of a function that is not in clipfuse."""
    if function.__module__.partition(".")[0] == "clipfuse":
        return None
    file = Path(inspect.unwrap(function).__code__.co_filename)
    return Origin(file.name, hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None)
