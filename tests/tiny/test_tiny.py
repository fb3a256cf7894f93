"""The offline suite: its pictures are always the same, its splits share nothing, its files say what is there."""

import ast
import fcntl
import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors import safe_open

from clipfuse.errors import OutputError
from clipfuse.tiny import WEIGHTS, digits, glyphs, housenumbers, materialise, signs
from clipfuse.tiny.suite import SUITE, VERSION, Job
from clipfuse.tiny.task import SPLITS

PIXELS = {
    "tiny-scenes": "e5ba11cacf666c3b5a1bb7b03a96e3491b8ad43eb90eb4b9c8aefd95d30c10fc",
    "tiny-vehicles": "70df91e805df5dd9e7ff407d9445d771215d6fa4eb81e36ff6459be290716749",
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
    """Drawn anew, once for all workers of a run: the others wait."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with (shared / "suite.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return materialise(shared / "suite")


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

    def draw(job: Job, folder: Path, running: list) -> Job:
        for split in job[1]:
            (folder / job[0].name / split).mkdir(parents=True)
            (folder / job[0].name / split / "picture").write_text("drawn")
        both.wait(timeout=10)
        return job

    monkeypatch.setattr("clipfuse.tiny.suite.draw", draw)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(materialise, [tmp_path, tmp_path], [["tiny-digits"]] * 2)
    assert first == second
    assert sorted(path.name for path in first.iterdir()) == sorted(["tiny-digits", *(f"{n}.yaml" for n in NAMES)])


def test_an_interrupted_drawing_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def stop(draft: Path, target: Path) -> None:
        raise KeyboardInterrupt

    class Popen(subprocess.Popen):
        def __init__(self, *words, **settings) -> None:
            super().__init__(*words, **settings)
            started.append(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("clipfuse.tiny.suite.move_in", stop)
        patch.setattr("subprocess.Popen", Popen)
        materialise(tmp_path, ["tiny-digits", "tiny-scenes", "tiny-aerial", "tiny-textures"])
    assert started
    assert all(process.poll() is not None for process in started), "a process goes on drawing"
    assert {path.suffix for path in (tmp_path / f"tiny-{VERSION}").iterdir()} == {".yaml"}
    told = []
    folder = materialise(tmp_path, iter(["tiny-digits"]), ["val"], told.append)
    assert sum(told) == len(list((folder / "tiny-digits").rglob("*.png"))) == 250
    materialise(tmp_path, ["tiny-digits"], progress=told.append)
    assert sum(told) == len(list((folder / "tiny-digits").rglob("*.png"))) == 1797


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        materialise(tmp_path / "file", ["tiny-digits"])
    monkeypatch.setattr("clipfuse.tiny.suite.sys.path", [])
    monkeypatch.setenv("PYTHONHOME", str(tmp_path))
    with pytest.raises(OutputError, match="tiny-digits: "):
        materialise(tmp_path, ["tiny-digits"])


def test_many_threads_may_ask_at_once(tmp_path: Path) -> None:
    for number in range(20):
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(materialise, [tmp_path / str(number)] * 8, [()] * 8))
        assert sorted(path.stem for path in (tmp_path / str(number)).rglob("*.yaml")) == sorted(NAMES)


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


def test_the_test_split_has_typefaces_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def bytes_of(sort: str) -> set[bytes]:
        return {digit.tobytes() for face in glyphs.faces()[sort] for digit in face}

    assert len(glyphs.faces()["seen"]) > 2 * len(glyphs.faces()["held out"]) > 40
    assert len(bytes_of("held out") & bytes_of("seen")) < 5, "hardly a digit looks the same in two faces"
    for task in (housenumbers, signs):
        for split, other in (("train", "held out"), ("val", "held out"), ("test", "seen")):
            with monkeypatch.context() as patch:
                patch.setitem(glyphs.faces(), other, ())
                assert next(iter(reversed(list(task.TASK.examples(split))[-3:])))


def test_every_typeface_is_named() -> None:
    index = json.loads(glyphs.ATLAS.with_suffix(".json").read_text(encoding="utf-8"))
    text = (glyphs.ATLAS.parent / "TYPEFACES.txt").read_text(encoding="utf-8")
    named = {line.split(": ")[0] for line in text.splitlines()[3:]}
    assert named == {face["family"] for face in index}


def test_no_scan_is_in_two_splits() -> None:
    rows = [row for split in SPLITS for row in digits.ROWS[split]]
    assert sorted(rows) == list(range(1797))


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


@pytest.mark.parametrize("name", NAMES)
def test_experts_began_from_the_base(name: str) -> None:
    def weights(folder: str) -> dict[str, np.ndarray]:
        with safe_open(WEIGHTS / folder / "model.safetensors", framework="numpy") as file:
            return {key: file.get_tensor(key).astype(float) for key in file.keys() if key.startswith("vision_model.")}  # noqa: SIM118

    base, expert = weights("base"), weights(name)
    moved = sum(np.sum((expert[key] - base[key]) ** 2) for key in base)
    assert 0 < moved < 0.1**2 * sum(np.sum(value**2) for value in base.values())


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
