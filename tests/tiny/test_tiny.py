"""The offline suite: its pictures are always the same, its splits share nothing, its files say what is there."""

import ast
import hashlib
import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors import safe_open

from clipfuse.tiny import WEIGHTS, materialise
from clipfuse.tiny.suite import SUITE
from clipfuse.tiny.task import SPLITS

PIXELS = {
    "tiny-digits": "13a3a89a5f4df3cf381ea0cb3dd80e96756f05fabac61106564e54333a787148",
    "tiny-signs": "28c63292295be09c6540e367e36eed5ca55f14bf29ae5f43dad7a326a149aebb",
}
"""SHA-256 of every task's pixels, split after split. If it changes, the suite's VERSION must, and the weights too."""

KEYS = ["name", "folder", "splits", "templates", "classes", "test_images", "licence", "paper", "note"]
NAMES = [task.name for task in SUITE]


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return materialise(tmp_path_factory.mktemp("cache"))


def files(folder: Path) -> dict[str, bytes]:
    """Every file's digest by its relative path."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).digest() for path in found}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def test_written_twice_is_the_same(suite: Path, tmp_path: Path) -> None:
    assert files(materialise(tmp_path)) == files(suite)


def test_two_writers_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = Barrier(2)

    def examples(split: str) -> list[tuple[int, np.ndarray]]:
        both.wait(timeout=10)
        return [(0, np.zeros((32, 32, 3), np.uint8))]

    stub = replace(SUITE[0], name="stub", classes=("only",), examples=examples)
    monkeypatch.setattr("clipfuse.tiny.suite.SUITE", (stub,))
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(materialise, [tmp_path, tmp_path])
    assert first == second
    assert [path.name for path in tmp_path.iterdir()] == [first.name], "a scratch folder was left behind"
    assert len(files(first)) == 4


def test_is_written_once(suite: Path) -> None:
    before = (suite / "tiny-digits.yaml").stat()
    assert materialise(suite.parent) == suite
    assert (suite / "tiny-digits.yaml").stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("name", NAMES)
def test_pixels_are_the_published_ones(suite: Path, name: str) -> None:
    paths = [path for split in SPLITS for path in sorted((suite / name / split).rglob("*.png"))]
    content = b"".join(pixels(path).tobytes() for path in paths)
    assert len(content) == len(paths) * 32 * 32 * 3
    assert hashlib.sha256(content).hexdigest() == PIXELS[name]


@pytest.mark.parametrize("name", NAMES)
def test_splits_share_no_picture(suite: Path, name: str) -> None:
    seen = Counter(pixels(path).tobytes() for path in (suite / name).rglob("*.png"))
    assert max(seen.values()) == 1


def test_numbers_of_pictures(suite: Path) -> None:
    def count(name: str, split: str) -> list[int]:
        return [len(list(folder.glob("*.png"))) for folder in (suite / name / split).iterdir()]

    assert [sum(count("tiny-digits", split)) for split in SPLITS] == [1000, 250, 547]
    assert [set(count("tiny-signs", split)) for split in SPLITS] == [{100}, {25}, {60}]


@pytest.mark.parametrize("name", NAMES)
def test_task_file_agrees_with_its_folder(suite: Path, name: str) -> None:
    text = (suite / f"{name}.yaml").read_text(encoding="utf-8")
    task = yaml.safe_load(text)
    assert list(task) == KEYS
    assert task["name"] == name
    assert list(task["splits"]) == list(SPLITS)
    assert all(template.count("{c}") == 1 for template in task["templates"])
    assert all(f'- "{label}"' in text for label in task["classes"]), "classes stand in quotes"
    for split in task["splits"].values():
        assert {path.name for path in (suite / task["folder"] / split).iterdir()} == set(task["classes"])
    assert task["test_images"] == len(list((suite / task["folder"] / task["splits"]["test"]).rglob("*.png")))


@pytest.mark.parametrize("name", ["base", *NAMES])
def test_weights_are_halves_under_classic_names(name: str) -> None:
    with safe_open(WEIGHTS / name / "model.safetensors", framework="numpy") as file:
        names = list(file.keys())
        assert file.metadata() == {"format": "pt"}
        assert all(file.get_slice(key).get_dtype() == "F16" for key in names)
    vision = [key for key in names if key.startswith("vision_model.")]
    assert "vision_model.encoder.layers.0.self_attn.q_proj.weight" in vision
    assert name == "base" or vision == names
    config = json.loads((WEIGHTS / name / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["CLIPModel" if name == "base" else "CLIPVisionModel"]


def test_experts_have_the_shape_of_the_base() -> None:
    def shapes(name: str) -> dict[str, list[int]]:
        with safe_open(WEIGHTS / name / "model.safetensors", framework="numpy") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys() if key.startswith("vision_model.")}  # noqa: SIM118

    assert all(shapes(name) == shapes("base") for name in NAMES)


def test_weights_are_small_and_complete() -> None:
    found = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in found) <= 4_000_000
    base = {path.name for path in (WEIGHTS / "base").iterdir()}
    assert base >= {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (WEIGHTS / "log.txt").is_file()


def test_needs_no_torch() -> None:
    heavy = ["torch", "transformers", "sklearn"]
    code = f"import sys, clipfuse.tiny; print([name for name in {heavy} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert ast.literal_eval(output) == []
