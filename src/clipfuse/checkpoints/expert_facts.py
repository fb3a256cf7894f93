"""`finetune.json` in an expert's folder: what it was made from and how."""

from pathlib import Path
from typing import Any

from clipfuse.checkpoints.json_file import read_json

FACTS = "finetune.json"


def read_facts(folder: Path) -> dict[str, Any] | None:
    """What a fine-tuning wrote of itself; None where there is nothing of the kind."""
    try:
        facts = read_json(folder / FACTS)
        path, identity = facts["base"]["path"], facts["base"]["identity"]
        return facts if all(isinstance(text, str) for text in (facts["key"], path, identity)) else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
