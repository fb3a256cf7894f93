"""Small JSON files that lie beside weights, read whole but never more than a bound."""

import json
from pathlib import Path
from typing import Any

MAX_BYTES = 4 << 20
"""An index of shards takes 100 bytes a tensor."""


def read_json(path: Path) -> Any:
    """What a file holds.

    Raises:
        FileNotFoundError: no such file.
        OSError: it cannot be read.
        ValueError: it is no regular file, which could keep its reader waiting, or is too large, or not JSON.
        RecursionError: it is nested too deep.
    """
    if path.exists() and not path.is_file():
        raise ValueError("not a regular file")
    with path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES:,} bytes")
    return json.loads(raw.decode("utf-8"), object_pairs_hook=no_repeats)


def no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For json.loads: a mapping. Raises ValueError for one in which a name stands twice."""
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a name stands twice")
    return dict(pairs)
