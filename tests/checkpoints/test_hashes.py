"""sha256 of weights: known without reading where possible, and never of another file than the one that is there."""

import hashlib
import os
import threading
from pathlib import Path

import pytest

from clipfuse.checkpoints import hashes
from clipfuse.checkpoints.hashes import compute_hash, compute_in_background, known_hash


def sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


@pytest.fixture(autouse=True)
def cold_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPFUSE_CACHE", str(tmp_path / "cache"))


def test_computed_once_then_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    raw = os.urandom(3000)
    (tmp_path / "a").write_bytes(raw)
    monkeypatch.setattr(hashes, "CHUNK", 1024)
    assert known_hash(tmp_path / "a") is None
    assert compute_hash(tmp_path / "a") == sha256(raw)
    assert known_hash(tmp_path / "a") == sha256(raw)
    (tmp_path / "a").chmod(0)
    assert compute_hash(tmp_path / "a") == sha256(raw)


def test_a_changed_file_is_not_known(tmp_path: Path):
    path = tmp_path / "a"
    path.write_bytes(b"first")
    compute_hash(path)
    path.write_bytes(b"other")
    os.utime(path, ns=(1, 1))
    assert known_hash(path) is None
    assert compute_hash(path) == sha256(b"other")
    path.write_bytes(b"longer text")
    os.utime(path, ns=(1, 1))
    assert known_hash(path) is None


def test_a_replaced_file_is_not_known(tmp_path: Path):
    for name, raw in (("a", b"first"), ("b", b"other")):
        (tmp_path / name).write_bytes(raw)
        os.utime(tmp_path / name, ns=(1, 1))
    compute_hash(tmp_path / "a")
    (tmp_path / "b").replace(tmp_path / "a")
    assert known_hash(tmp_path / "a") is None


def test_blobs_of_the_hub_are_named_by_their_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "c"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    large, small = sha256(b"weights"), hashlib.sha1(b"git").hexdigest()
    for name, blob in (("model.safetensors", large), ("config.json", small)):
        (blobs / blob).write_bytes(b"weights")
        (snapshot / name).symlink_to(blobs / blob)
    assert known_hash(snapshot / "model.safetensors") == large
    assert known_hash(snapshot / "config.json") is None, "git's own hash is another"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "other"))
    assert known_hash(snapshot / "model.safetensors") is None, "elsewhere anybody may name a file like that"


def test_in_the_background(tmp_path: Path):
    paths = [tmp_path / name for name in ("a", "absent", "b")]
    for path in (paths[0], paths[2]):
        path.write_text(path.name)
    thread = compute_in_background(paths)
    thread.join(10)
    assert known_hash(paths[0]) == sha256(b"a")
    assert known_hash(paths[2]) == sha256(b"b")


@pytest.mark.parametrize("home", ["/dev/null/cache", "gone"])
def test_without_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str):
    """A cache that cannot be made or written is no reason to fail, nor to print beside somebody's merge."""
    said: list[object] = []
    monkeypatch.setattr(threading, "excepthook", said.append)
    monkeypatch.setenv("CLIPFUSE_CACHE", home)
    if home == "gone":
        monkeypatch.setattr(hashes, "cache_folder", lambda part: tmp_path / home)
    (tmp_path / "a").write_text("a")
    compute_in_background([tmp_path / "a"]).join(10)
    assert said == []
    assert compute_hash(tmp_path / "a") == sha256(b"a")
    assert known_hash(tmp_path / "a") is None
