"""Fixtures that every test may use: random models as state dicts, folders and pools."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from random_models import random_models
from torch import Tensor

from clipfuse.testing import write_models


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache; the tiny suite's pictures are drawn once for all workers."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    monkeypatch.setenv("CLIPFUSE_CACHE", str(shared / "cache"))


@pytest.fixture
def own_rules() -> Iterator[None]:
    """Rules that a test registers are gone after it."""
    from clipfuse.fusion.registry import TABLES

    before = {kind: dict(table) for kind, table in TABLES.items()}
    yield
    for kind, table in TABLES.items():
        table.clear()
        table.update(before[kind])


@pytest.fixture
def models() -> dict[str, dict[str, Tensor]]:
    return random_models()


@pytest.fixture
def pool_yaml(tmp_path: Path, models: dict[str, dict[str, Tensor]]) -> Path:
    """A pool's YAML over folders in hub layout."""
    lines = ["type: huggingface_clip_vision", "models:"]
    for name, folder in write_models(models, tmp_path / "models").items():
        lines += [f"  - name: {name}", f"    path: {folder}"]
    path = tmp_path / "pool.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path
