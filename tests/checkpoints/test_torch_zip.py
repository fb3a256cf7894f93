"""Damaged and hostile torch files, and a sound one of which any byte may be wrong."""

import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_modules import save_foreign
from handmade_pickles import FOUR, ONE, START, STOP, holding, tensor

from clipfuse.checkpoints.torch_file import TorchFile
from clipfuse.errors import CheckpointError

PICKLE = START + holding(tensor(FOUR, ONE)) + STOP
SOUND = {"a/data.pkl": PICKLE, "a/data/0": bytes(16), "a/byteorder": b"little"}


def zipped(path: Path, *entries: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    with zipfile.ZipFile(path, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a name that stands twice
        for name, raw in entries:
            archive.writestr(name, raw)
    return path.read_bytes()


def changed(**entries: bytes | None) -> list[tuple[str, bytes]]:
    """The sound file's entries with others, or without those that are None."""
    named = {name.replace("_", "/", 1).replace("pickle", "data.pkl"): raw for name, raw in entries.items()}
    return [(name, raw) for name, raw in (SOUND | named).items() if raw is not None]
