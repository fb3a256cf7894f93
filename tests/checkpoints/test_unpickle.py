"""Hostile pickles: each is refused at once, in one line, at little cost, and nothing that it names is run."""

import pickle
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from handmade_pickles import FOUR, LEGACY, ONE, START, STOP, holding, legacy, module, tensor, zipped
from hostile_pickles import COSTLY, NAMED, ODD

from clipfuse.checkpoints.torch_file import TorchFile
from clipfuse.checkpoints.unpickle import Window, unpickle
from clipfuse.errors import CheckpointError


def refusal(path: Path) -> str:
    began = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        TorchFile(path)
    assert time.process_time() - began < 1
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert said.isprintable()
    assert len(said) < 1000
    return said


@pytest.mark.parametrize("write", [legacy, zipped])
@pytest.mark.parametrize("asked", NAMED)
def test_what_is_asked_for_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, write: Callable):
    monkeypatch.chdir(tmp_path)
    write(NAMED[asked], Path("a.pt"))
    assert f" {asked}; nothing of it was run" in refusal(Path("a.pt"))
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"], "what SENTINEL stands for was made"


@pytest.mark.parametrize("asked", ["os.system", "builtins.eval", "builtins.open", "os.popen"])
def test_the_attacks_are_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str):
    """A reader that takes everything runs them."""
    monkeypatch.chdir(tmp_path)
    made = pickle.loads(START + NAMED[asked] + STOP)  # noqa: S301
    if asked == "os.popen":
        made().close()
    elif hasattr(made, "close"):
        made.close()
    assert Path("SENTINEL").exists()


@pytest.mark.parametrize(("raw", "said"), (ODD | COSTLY).values(), ids=ODD | COSTLY)
def test_odd_and_costly(tmp_path: Path, raw: bytes, said: str):
    zipped(raw, tmp_path / "a.pt")
    assert said in refusal(tmp_path / "a.pt")
    legacy(raw, tmp_path / "a.pt")
    refusal(tmp_path / "a.pt")


@pytest.mark.parametrize("claim", [case for case in COSTLY if " of " in case.split("(")[0]])
def test_nothing_is_allocated_for_what_is_claimed(tmp_path: Path, claim: str):
    zipped(COSTLY[claim][0], tmp_path / "a.pt")
    tracemalloc.start()
    try:
        refusal(tmp_path / "a.pt")
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("write", [legacy, zipped])
def test_what_the_odd_ones_are_made_from_is_sound(tmp_path: Path, write: Callable):
    """Else they would be refused for other reasons."""
    for raw in (holding(tensor(FOUR, ONE)), module(own=holding(tensor(FOUR, ONE)))):
        write(raw, tmp_path / "a.pt")
        assert TorchFile(tmp_path / "a.pt").read("weight").tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_are_python_s(protocol: int):
    shared = [1, "ä" * 300, None, True, False, -5, 1 << 40, 1 << 20, 0.5, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)]
    value = {"a": shared, "b": {"c": shared, 3: {}}, "d": [[]]}
    raw = pickle.dumps(value, protocol)
    found = unpickle(Window(raw, 0, len(raw)), Path("a")).value
    assert found == value
    assert found["a"] is found["b"]["c"]


def test_cut_anywhere(tmp_path: Path):
    raw = holding(tensor(FOUR, ONE))
    for length in range(len(raw)):
        (tmp_path / "a.pt").write_bytes(LEGACY + START + raw[:length])
        refusal(tmp_path / "a.pt")
