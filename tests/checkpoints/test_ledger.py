"""What was opened is taken down, and a job can be held to it."""

import json
from pathlib import Path

import pytest

from clipfuse.checkpoints.ledger import keep_ledger, locked_revision, note_opened
from clipfuse.checkpoints.locate import locate
from clipfuse.errors import ConfigError, LocateError


def test_nothing_is_taken_down_where_no_ledger_is_kept(model_folder: Path):
    note_opened("model", "a", None)
    assert locked_revision("model", "a") is None
    assert locate(str(model_folder)).folder == model_folder


def test_a_locked_job_opens_what_the_first_one_did(model_folder: Path, tmp_path: Path):
    with keep_ledger() as ledger:
        locate(str(model_folder))
        note_opened("dataset", "org/pets", "c" * 40)
    ledger.write(tmp_path)
    opened = json.loads((tmp_path / "clipfuse.lock").read_text())["opened"]
    assert [(entry["kind"], entry["revision"], sorted(entry["files"])) for entry in opened] == [
        ("dataset", "c" * 40, []),
        ("model", None, ["config.json", "model.safetensors"]),
    ]
    with keep_ledger(tmp_path):
        locate(str(model_folder))
        assert locked_revision("dataset", "org/pets") == "c" * 40
        with pytest.raises(LocateError, match="org/pets: is at d+, .* says c+"):
            note_opened("dataset", "org/pets", "d" * 40)


@pytest.mark.parametrize("changed", ["model.safetensors", "config.json"])
def test_other_bytes_are_refused(model_folder: Path, tmp_path: Path, changed: str):
    with keep_ledger() as ledger:
        locate(str(model_folder))
    ledger.write(tmp_path)
    raw = bytearray((model_folder / changed).read_bytes())
    raw[-2] ^= 1
    (model_folder / changed).write_bytes(raw)
    with keep_ledger(tmp_path / "clipfuse.lock"), pytest.raises(LocateError, match=f"{changed} is another file"):
        locate(str(model_folder))


def test_what_a_lock_does_not_name_is_refused(model_folder: Path, tmp_path: Path):
    with keep_ledger() as ledger:
        pass
    ledger.write(tmp_path)
    with keep_ledger(tmp_path), pytest.raises(LocateError, match=r"is not in .*clipfuse\.lock; without --locked"):
        locate(str(model_folder))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 9, "opened": []}', '{"schema": 1, "opened": [{}]}'])
def test_what_is_no_lock_is_one_line(tmp_path: Path, text: str):
    (tmp_path / "clipfuse.lock").write_text(text)
    with pytest.raises(ConfigError, match=r"clipfuse\.lock"), keep_ledger(tmp_path):
        pass


def test_a_lock_that_is_not_there(tmp_path: Path):
    with pytest.raises(ConfigError, match="no such file"), keep_ledger(tmp_path / "absent"):
        pass


def test_every_file_that_is_read_is_in_a_lock(model_folder: Path, tmp_path: Path):
    """Shards of any name, and the configuration beside a weights file."""
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (model_folder / "model.safetensors").rename(model_folder / "one.safetensors")
    (model_folder / "two.safetensors").write_bytes((model_folder / "one.safetensors").read_bytes())
    (model_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with keep_ledger() as ledger:
        locate(str(model_folder))
        locate(str(model_folder / "one.safetensors"))
    ledger.write(tmp_path)
    whole, single = json.loads((tmp_path / "clipfuse.lock").read_text())["opened"]
    assert {"one.safetensors", "two.safetensors", "config.json", "model.safetensors.index.json"} == set(whole["files"])
    assert {"one.safetensors", "config.json"} == set(single["files"])
