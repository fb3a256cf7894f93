"""Splits are what their description says, and what is wrong with them is named."""

import logging
from pathlib import Path

import pytest
import torch
from PIL import Image

from clipfuse.data import Preprocess, Split, blocks, open_images, open_split
from clipfuse.data.splits import check_split
from clipfuse.errors import TaskError
from clipfuse.tasks import Task

SMALL = Preprocess(8, 8)


@pytest.fixture
def task(tmp_path: Path) -> Task:
    for split, count in (("train", 30), ("test", 4)):
        for number, name in enumerate(("cat", "dog")):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (number * 100, i, 0)).save(folder / f"{i:03}.png")
    return Task(name="pets", classes=["cat", "dog"], templates=["a {c}."], folder=str(tmp_path))


def test_splits_of_a_folder(task: Task):
    test = open_split(task, "test")
    assert list(test.labels) == [0] * 4 + [1] * 4
    found = torch.cat([block.pixels for block in blocks(open_images(test, SMALL))])
    assert found[:, 0, 0, 0].tolist() == [0] * 4 + [100] * 4
    assert found[:, 1, 0, 0].tolist() == [0, 1, 2, 3] * 2


def test_val_is_a_seeded_tenth_of_train_and_limits_are_seeded(task: Task):
    def shades(split: str, seed: int, limit: int | None = None) -> list[int]:
        opened = open_split(task, split, limit, seed)
        return torch.cat([b.pixels for b in blocks(open_images(opened, SMALL))])[:, :2, 0, 0].flatten().tolist()

    assert len(open_split(task, "val")) == 6
    assert shades("val", 0) == shades("val", 0) != shades("val", 1)
    assert shades("train", 0, 10) == shades("train", 0, 10) != shades("train", 1, 10)


def test_what_is_wrong_with_a_split_is_named(task: Task, tmp_path: Path):
    with pytest.raises(TaskError, match="unknown split 'tst'; did you mean 'test'"):
        open_split(task, "tst")
    (tmp_path / "test/dog/bad.png").write_bytes(b"not an image")
    with pytest.raises(TaskError, match=r"bad\.png: is not a readable image"):
        list(blocks(open_images(open_split(task, "test"), SMALL, cached=False)))
    (tmp_path / "test/dgo").mkdir()
    with pytest.raises(TaskError, match="unknown class 'dgo'; did you mean 'dog'"):
        open_split(task, "test")
    with pytest.raises(TaskError, match="no such folder"):
        open_split(task.model_copy(update={"folder": str(tmp_path / "none")}), "test")


def test_what_was_chosen_is_recorded_and_identifies(task: Task):
    whole, val, some = open_split(task, "train"), open_split(task, "val", seed=3), open_split(task, "train", 10, 4)
    assert (dict(whole.chosen), whole.rows) == ({}, None)
    assert val.chosen == {"carved": {"of": "train", "share": 0.1, "seed": 3}}
    assert some.chosen == {"limit": {"images": 10, "seed": 4}}
    assert open_split(task, "val", 2, seed=3).rows == open_split(task, "val", 2, seed=3).rows
    keys = [whole.key(), val.key(), some.key(), open_split(task, "train", 10, 5).key(), open_split(task, "test").key()]
    assert len({*keys}) == 5
    assert open_split(task, "train").key() == whole.key() != whole.key("facts")
    file = Path(str(task.folder)) / "train/cat/000.png"
    Image.new("RGB", (8, 8), (1, 2, 3)).save(file)
    assert open_split(task, "train").key() != whole.key(), "a file was changed"


def test_carved_val_warns_that_experts_saw_it(task: Task, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        open_split(task, "val")
    assert "6 of 60 train images stand in (seed 0); published experts were trained on them" in caplog.text


def test_a_test_split_of_another_size_is_warned_of(task: Task, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        open_split(task.model_copy(update={"test_images": 8}), "test")
        assert not caplog.text
        open_split(task.model_copy(update={"test_images": 12_630}), "test")
    assert "pets: 8 test images; its description says 12,630" in caplog.text


def test_labels_out_of_range_are_named_and_counted(task: Task):
    split = Split("pets", "test", [0, 2, 1, -1], lambda i: b"", lambda i: f"row {i}")
    with pytest.raises(TaskError, match=r"label 2 of row 1 \(2 of 4 labels in 'test' are out of range\).* 0 to 1"):
        check_split(task, split)


def test_parquet_folders_are_opened_by_their_structure(task: Task, tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [(tmp_path / f"test/{name}/000.png").read_bytes() for name in ("dog", "cat")]
    (tmp_path / "table").mkdir()
    table = pa.table({"image": [{"bytes": raw, "path": None} for raw in images], "label": [1, 0]})
    pq.write_table(table, tmp_path / "table/test-00000-of-00001.parquet")
    opened = open_split(task.model_copy(update={"folder": str(tmp_path / "table")}), "test")
    assert list(opened.labels) == [1, 0]
    assert [opened.read(i) for i in range(2)] == images
    assert opened.key()
