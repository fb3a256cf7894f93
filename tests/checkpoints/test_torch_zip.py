"""Zips that are not as torch writes them, and sound files of which any byte may be wrong."""

import random
import struct
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import pytest
from foreign_modules import save_foreign
from handmade_pickles import FOUR, ONE, START, STOP, holding, tensor

from clipfuse.checkpoints.torch_file import TorchFile
from clipfuse.errors import CheckpointError

PICKLE = START + holding(tensor(FOUR, ONE)) + STOP
ENTRIES = {"a/data.pkl": PICKLE, "a/data/0": bytes(16), "a/byteorder": b"little"}


def zipped(path: Path, *entries: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    with zipfile.ZipFile(path, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # at a name that stands twice
        for name, raw in entries:
            archive.writestr(name, raw)
    return path.read_bytes()


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        TorchFile(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert said.isprintable()
    return said


def test_the_sound_one_is_taken(tmp_path: Path):
    zipped(tmp_path / "a.pt", *ENTRIES.items())
    assert TorchFile(tmp_path / "a.pt").read("weight").tolist() == [0, 0, 0, 0]


CONTENTS: dict[str, tuple[dict[str, bytes], str]] = {
    "another pickle": ({"b/data.pkl": PICKLE}, "is a zip with 2 entries */data.pkl; torch's have one"),
    "big-endian": ({"a/byteorder": b"big"}, "was written on a big-endian machine"),
    "a storage that is short": ({"a/data/0": bytes(15)}, "'data/0' should hold 16 bytes and holds 15"),
    "a pickle that is empty": ({"a/data.pkl": b""}, "its pickle is cut short"),
}


@pytest.mark.parametrize(("entries", "said"), CONTENTS.values(), ids=CONTENTS)
def test_contents(tmp_path: Path, entries: dict[str, bytes], said: str):
    zipped(tmp_path / "a.pt", *(ENTRIES | entries).items())
    assert said in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("missing", "said"),
    [("a/data.pkl", "is a zip with 0 entries"), ("a/data/0", "should hold 16 bytes and is missing")],
)
def test_what_is_missing(tmp_path: Path, missing: str, said: str):
    zipped(tmp_path / "a.pt", *((name, raw) for name, raw in ENTRIES.items() if name != missing))
    assert said in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize("name", ENTRIES)
def test_a_name_twice(tmp_path: Path, name: str):
    zipped(tmp_path / "a.pt", *ENTRIES.items(), (name, ENTRIES[name]))
    assert "is a zip in which a name stands twice" in refusal(tmp_path / "a.pt")


def test_compressed(tmp_path: Path):
    zipped(tmp_path / "a.pt", *ENTRIES.items(), compression=zipfile.ZIP_DEFLATED)
    assert "entry 'a/data.pkl' is compressed; torch stores its values plainly" in refusal(tmp_path / "a.pt")


def patched(raw: bytes, at: int, layout: str, value: int) -> bytes:
    return raw[:at] + struct.pack(layout, value) + raw[at + struct.calcsize(layout) :]


HEADERS = {
    "encrypted": (8, "<H", 1, "entry 'a/data.pkl' is encrypted"),
    "an offset to nowhere": (42, "<I", 1 << 30, "is a damaged zip: entry 'a/data.pkl' does not begin"),
    "an offset to another's bytes": (42, "<I", 5, "is a damaged zip: entry 'a/data.pkl' does not begin"),
    "the next one's offset": (42, "<I", 40 + len(PICKLE), "is a damaged zip: entry"),
    "a size beyond the end": (20, "<I", 1 << 30, "is a truncated zip: entry 'a/data.pkl' reaches beyond its end"),
    "a size into the next one": (20, "<I", len(PICKLE) + 1, "is a damaged zip: entry 'a/data/0' does not begin"),
    "a version to come": (6, "<H", 900, "is a damaged or truncated zip"),
}


@pytest.mark.parametrize(("at", "layout", "value", "said"), HEADERS.values(), ids=HEADERS)
def test_headers(tmp_path: Path, at: int, layout: str, value: int, said: str):
    raw = zipped(tmp_path / "a.pt", *ENTRIES.items())
    (tmp_path / "a.pt").write_bytes(patched(raw, raw.index(b"PK\1\2") + at, layout, value))
    assert said in refusal(tmp_path / "a.pt")


def test_cut_anywhere(tmp_path: Path):
    raw = zipped(tmp_path / "a.pt", *ENTRIES.items())
    for length in range(len(raw)):
        (tmp_path / "a.pt").write_bytes(raw[:length])
        refusal(tmp_path / "a.pt")


def test_a_directory_of_megabytes_is_not_read(tmp_path: Path):
    raw = zipped(tmp_path / "a.pt", *ENTRIES.items())
    padded = raw[: raw.index(b"PK\1\2")] + bytes(50 << 20) + raw[raw.index(b"PK\5\6") :]
    (tmp_path / "a.pt").write_bytes(patched(padded, padded.index(b"PK\5\6") + 12, "<I", 50 << 20))
    tracemalloc.start()
    said = refusal(tmp_path / "a.pt")
    cost = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "its directory takes more than 4 MiB" in said
    assert cost < 1 << 20


@pytest.mark.parametrize("new", [True, False], ids=["zip", "before 1.6"])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_any_byte_may_be_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: bool):
    """A file is refused as damaged, or read; nothing else ever happens."""
    save_foreign(monkeypatch, tmp_path / "a.pt", "ClassificationHead", _use_new_zipfile_serialization=new)
    sound = (tmp_path / "a.pt").read_bytes()
    draw = random.Random(0)
    outcomes = [outcome(tmp_path, spoil(sound, draw)) for _ in range(150)]
    assert 20 < sum(outcomes) < 130, "some of both"


def spoil(sound: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(sound))
    if draw.random() < 0.25:
        return sound[:at]
    return sound[:at] + bytes([draw.randrange(256)]) + sound[at + 1 :]


def outcome(folder: Path, raw: bytes) -> bool:
    (folder / "b.pt").write_bytes(raw)
    try:
        file = TorchFile(folder / "b.pt")
    except CheckpointError:
        return False
    for name, spec in file.specs.items():
        found = file.read(name)
        assert (tuple(found.shape), found.dtype) == (spec.shape, spec.dtype)
        assert found.clone().numel() == spec.numel
    return True
