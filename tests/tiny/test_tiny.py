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

from clipfuse.tiny import WEIGHTS, glyphs, materialise
from clipfuse.tiny.suite import SUITE, write_split
from clipfuse.tiny.task import SPLITS, TinyTask

PIXELS = {
    "tiny-scenes": "357f0e988eec7fe9f3bed8278c1de375b3f003d7f3ceff0a5f4f5fa1e752cb1b",
    "tiny-vehicles": "ff2129151221a6afd2cc03e6c6a9b61c837cc3371b86de2e934db2795ce722e9",
    "tiny-aerial": "74161ffbbad3f7e77696241e963d98e08d829275771a1cb541855455d3b50cb9",
    "tiny-landcover": "6d10f02b854cacdee45d627cae3d8e261e1ddca8b0b9d712eeea57a9664d49ee",
    "tiny-housenumbers": "492c7c58cb3119efbb9efcd2d0e55251435c1a02f5800fc11041cb949bb8e916",
    "tiny-signs": "11c4ab9d78e94c01c6a4101eb9daa4a3ef48a8f1b467bd2cbff4865e8d2652fb",
    "tiny-digits": "13a3a89a5f4df3cf381ea0cb3dd80e96756f05fabac61106564e54333a787148",
    "tiny-textures": "3cc1f1e3dd014b09b6b8c5fa70a03546a58dce9c631658e12a93394bfb31b6d6",
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
    pair = ["tiny-digits", "tiny-signs"]
    again = files(materialise(tmp_path, pair))
    first = files(suite)
    assert len(again) == len(NAMES) + 1797 + 16 * 225
    assert all(first[path] == digest for path, digest in again.items())


def test_two_writers_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = Barrier(2)

    def draw(task: TinyTask, folder: Path) -> TinyTask:
        (folder / task.name).mkdir()
        (folder / task.name / "picture").write_text("drawn")
        both.wait(timeout=10)
        return task

    monkeypatch.setattr("clipfuse.tiny.suite.draw", draw)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(materialise, [tmp_path, tmp_path], [["tiny-digits"]] * 2)
    assert first == second
    assert sorted(path.name for path in first.iterdir()) == sorted(["tiny-digits", *(f"{n}.yaml" for n in NAMES)])


def test_an_interrupted_drawing_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(task: TinyTask, folder: Path) -> TinyTask:
        write_split(replace(task, examples=lambda split: list(task.examples(split))[:3]), "val", folder / task.name)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("clipfuse.tiny.suite.draw", draw)
        materialise(tmp_path, ["tiny-digits"])
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".png"]
    told = []
    folder = materialise(tmp_path, ["tiny-digits"], told.append)
    assert sum(told) == len(list((folder / "tiny-digits").rglob("*.png"))) == 1797


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


@pytest.mark.parametrize("name", NAMES)
def test_numbers_of_pictures(suite: Path, name: str) -> None:
    counts = [[len(list(folder.glob("*.png"))) for folder in (suite / name / split).iterdir()] for split in SPLITS]
    if name == "tiny-digits":
        assert [sum(count) for count in counts] == [1000, 250, 547]
    else:
        assert [set(count) for count in counts] == [{100}, {25}, {100}]
    assert 6 <= len(counts[0]) <= 20


def test_unseen_typefaces_in_the_test_split() -> None:
    index = json.loads(glyphs.ATLAS.with_suffix(".json").read_text(encoding="utf-8"))
    seen, held_out = (len(glyphs.faces()[sort]) for sort in ("seen", "held out"))
    assert seen + held_out == len(index)
    assert seen > 2 * held_out > 20


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
    assert sum(path.stat().st_size for path in found) <= 40_000_000
    sizes = {name: (WEIGHTS / name / "model.safetensors").stat().st_size for name in ["base", *NAMES]}
    assert sizes.pop("base") <= 8_000_000
    assert sum(sizes.values()) <= 32_000_000
    base = {path.name for path in (WEIGHTS / "base").iterdir()}
    assert base >= {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_needs_no_torch() -> None:
    heavy = ["torch", "transformers", "sklearn"]
    code = f"import sys, clipfuse.tiny; print([name for name in {heavy} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert ast.literal_eval(output) == []
