"""Preprocessing equals transformers' Pillow processor, and splits are what their description says."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from clipfuse.data import Preprocess, blocks, open_split
from clipfuse.errors import TaskError
from clipfuse.tasks import Task

SIZES = [(375, 500), (500, 375), (32, 32), (28, 91), (224, 300), (301, 224), (61, 333), (225, 225)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_pixels_equal_transformers(size: tuple[int, int]):
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    ours = Preprocess()
    theirs = CLIPImageProcessorPil()(image, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(ours.normalise(ours.pixels(image)[None]), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_every_mode_becomes_rgb(mode: str):
    assert Preprocess(32, 32).pixels(Image.new("RGB", (40, 50), (9, 200, 30)).convert(mode)).shape == (3, 32, 32)


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
    found = torch.cat([block.pixels for block in blocks(test, Preprocess(8, 8), 3)])
    assert found[:, 0, 0, 0].tolist() == [0] * 4 + [100] * 4
    assert found[:, 1, 0, 0].tolist() == [0, 1, 2, 3] * 2


def test_val_is_a_seeded_tenth_of_train_and_limits_are_seeded(task: Task):
    def shades(split: str, seed: int, limit: int | None = None) -> list[int]:
        opened = open_split(task, split, limit, seed)
        return torch.cat([b.pixels for b in blocks(opened, Preprocess(8, 8))])[:, :2, 0, 0].flatten().tolist()

    assert len(open_split(task, "val")) == 6
    assert shades("val", 0) == shades("val", 0) != shades("val", 1)
    assert shades("train", 0, 10) == shades("train", 0, 10) != shades("train", 1, 10)


def test_what_is_wrong_with_a_split_is_named(task: Task, tmp_path: Path):
    with pytest.raises(TaskError, match="unknown split 'tst'; did you mean 'test'"):
        open_split(task, "tst")
    (tmp_path / "test/dog/bad.png").write_bytes(b"not an image")
    with pytest.raises(TaskError, match=r"bad\.png: is not a readable image"):
        list(blocks(open_split(task, "test"), Preprocess(8, 8)))
    (tmp_path / "test/dgo").mkdir()
    with pytest.raises(TaskError, match="unknown class 'dgo'; did you mean 'dog'"):
        open_split(task, "test")
    with pytest.raises(TaskError, match="no such folder"):
        open_split(task.model_copy(update={"folder": str(tmp_path / "none")}), "test")
