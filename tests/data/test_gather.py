"""Images in any order are those of preprocessing, from the cache or not; and the fingerprint is evaluation's."""

import io
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from picture_splits import Linear, make_head, matrices, picture_bytes
from PIL import Image

from clipfuse.data import ImageSet, Preprocess, Split, blocks, make_ready, open_images, open_split
from clipfuse.data.ahead import ahead
from clipfuse.data.fingerprint import fingerprint
from clipfuse.data.gather import Rows
from clipfuse.data.image_cache import SHARD
from clipfuse.errors import TaskError
from clipfuse.evaluate import Candidate, evaluate
from clipfuse.tasks import Task

PREPROCESS = Preprocess(12, 10)
SIZES = [(8, 8), (5, 9), (16, 16), (40, 7), (30, 20), (11, 12)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("CLIPFUSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def mixed(
    count: int, sizes: list[tuple[int, int]] = SIZES, bad: tuple[int, ...] = (), name: str = "mixed"
) -> tuple[Split, list[int]]:
    """A split of pictures of many sizes, some of them unreadable; and the rows that were read so far."""
    read: list[int] = []
    raw = [b"no image" if i in bad else picture_bytes(i, *sizes[i % len(sizes)]) for i in range(count)]

    def load(row: int) -> bytes:
        read.append(row)
        return raw[row]

    origin = {"made up": name, "count": count, "sizes": sizes, "bad": bad}
    return Split(name, "train", [i % 3 for i in range(count)], load, lambda i: f"{name}[{i}]", origin), read


def expected(split: Split, rows: list[int]) -> torch.Tensor:
    return torch.stack([PREPROCESS.pixels(Image.open(io.BytesIO(split.read(row)))) for row in rows])


def shuffled(count: int, wanted: int) -> list[int]:
    return random.Random(0).choices(range(count), k=wanted)


def ready(split: Split) -> ImageSet:
    images = open_images(split, PREPROCESS)
    make_ready(images)
    return images


@pytest.mark.parametrize("sizes", [SIZES, [(8, 8)], [(20, 30)]], ids=["mixed", "native", "preprocessed"])
@pytest.mark.parametrize("cached", [True, False])
def test_any_rows_in_any_order_are_those_of_preprocessing(sizes: list[tuple[int, int]], cached: bool):
    split, read = mixed(SHARD + 40, sizes)
    order = [*shuffled(len(split), 100), 7, 7, SHARD, 0, len(split) - 1, *range(SHARD - 3, SHARD + 3)]
    wanted, between = expected(split, order), expected(split, list(range(20, 40)))
    rows = Rows(ready(split) if cached else open_images(split, PREPROCESS, cached=False))
    read.clear()
    assert len(rows) == len(split)
    assert rows.labels.tolist() == split.labels
    assert torch.equal(rows.pixels(order), wanted)
    assert sorted(read) == ([] if cached else sorted(set(order))), "each is decoded once, if at all"
    assert torch.equal(rows.pixels(range(20, 40)), between)
    assert rows.pixels([]).shape == (0, 3, 10, 10)


def test_a_folder_of_images(tmp_path: Path):
    for i in range(12):
        path = tmp_path / "task" / "train" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture_bytes(i, *SIZES[i % len(SIZES)]))
    task = Task(
        name="t", classes=["a", "b"], templates=["{c}"], folder=str(tmp_path / "task"), splits={"train": "train"}
    )
    split = open_split(task, "train")
    for cached in (True, False):
        rows = Rows(open_images(split, PREPROCESS, cached))
        if cached:
            make_ready(rows.images)
        assert torch.equal(rows.pixels([11, 3, 3, 0]), expected(split, [11, 3, 3, 0]))
        assert rows.labels.tolist() == [0] * 6 + [1] * 6


def test_a_shard_is_read_once_and_nothing_is_decoded(monkeypatch: pytest.MonkeyPatch):
    split, read = mixed(SHARD + 40)
    rows = Rows(ready(split))
    from clipfuse.data import gather

    opened: list[str] = []
    plain = gather.read_shard
    monkeypatch.setattr(gather, "read_shard", lambda path, images: opened.append(path.name) or plain(path, images))
    read.clear()
    rows.pixels([SHARD, SHARD + 1])
    assert opened == ["00001.safetensors"]
    for _ in range(3):
        rows.pixels(shuffled(len(split), 50))
    assert sorted(opened) == ["00000.safetensors", "00001.safetensors"]
    assert read == []


def test_a_missing_shard_is_decoded_until_it_is_there():
    split, read = mixed(SHARD + 40)
    images = ready(split)
    assert images.entry
    images.entry.file(0).unlink()
    rows, order = Rows(images), [SHARD + 3, 5, 9, 5]
    wanted = expected(split, order)
    for _ in range(2):
        read.clear()
        assert torch.equal(rows.pixels(order), wanted)
        assert sorted(read) == [5, 9]
    assert not images.entry.file(0).exists()
    make_ready(images)
    read.clear()
    assert torch.equal(rows.pixels(order), wanted)
    assert read == []


def test_what_is_pruned_stays_mapped():
    split, read = mixed(40)
    images = ready(split)
    rows = Rows(images)
    rows.pixels([0])
    assert images.entry
    images.entry.file(0).unlink()
    wanted = expected(split, [39, 4])
    read.clear()
    assert torch.equal(rows.pixels([39, 4]), wanted)
    assert read == []


@pytest.mark.parametrize("full", [False, True])
def test_a_damaged_shard_is_made_again(full: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    split, read = mixed(40)
    images = ready(split)
    assert images.entry
    path = images.entry.file(0)
    whole = path.read_bytes()
    path.write_bytes(whole[:-7] + bytes([whole[-7] ^ 1]) + whole[-6:])
    if full:
        monkeypatch.setenv("CLIPFUSE_CACHE_LIMIT", "1kB")
    rows, wanted = Rows(images), expected(split, [39, 2, 39])
    assert torch.equal(rows.pixels([39, 2, 39]), wanted)
    assert "it is made again" in caplog.text
    assert (path.read_bytes() == whole) != full
    read.clear()
    assert torch.equal(rows.pixels([39, 2, 39]), wanted)
    assert sorted(read) == ([2, 39] if full else [])


@pytest.mark.parametrize("cached", [True, False])
def test_unreadable_images_are_named(cached: bool):
    split, _ = mixed(40, bad=(3, 17))
    images = open_images(split, PREPROCESS, cached, "skip")
    make_ready(images)
    rows = Rows(replace(images, unreadable="error"))
    rows.pixels([4, 5])
    with pytest.raises(TaskError, match=r"^mixed: mixed\[3\]: is not a readable image; unreadable=skip"):
        rows.pixels([4, 3, 5])
    with pytest.raises(TaskError, match=r"mixed\[3\]: is not a readable image \(2 of 3 images are not\)"):
        rows.pixels([17, 4, 3])


def test_results_are_made_ahead_in_order_in_one_thread():
    made: list[int] = []
    threads: set[int] = set()

    def load(number: int) -> int:
        threads.add(threading.get_ident())
        made.append(number)
        return number * number

    results = ahead(load, iter(range(10)), depth=3)
    assert next(results) == 0
    wait_for(lambda: len(made) == 4)
    time.sleep(0.01)
    assert made == [0, 1, 2, 3], "the one in use, and three more"
    assert list(results) == [n * n for n in range(1, 10)]
    assert len(threads) == 1
    assert threads != {threading.get_ident()}
    assert list(ahead(load, [])) == []


def test_errors_come_at_their_place_and_end_it():
    made: list[int] = []

    def load(number: int) -> int:
        made.append(number)
        if number == 2:
            raise TaskError("two")
        return number

    before, results = threading.active_count(), ahead(load, range(100))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(TaskError, match="two"):
        next(results)
    assert list(results) == []
    assert len(made) < 6
    assert threading.active_count() == before


def test_closing_early_stops_the_thread():
    def endless() -> Iterator[int]:
        number = 0
        while True:
            yield (number := number + 1)

    before, results = threading.active_count(), ahead(lambda number: number, endless())
    assert next(results) == 1
    assert threading.active_count() == before + 1
    results.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert threading.active_count() == before


def test_closing_early_does_not_make_what_waits():
    made: list[int] = []

    def load(number: int) -> int:
        made.append(number)
        time.sleep(0.05 if number else 0)
        return number

    results = ahead(load, range(10))
    next(results)
    results.close()  # pyright: ignore[reportAttributeAccessIssue]
    assert made in ([0], [0, 1])


def wait_for(condition, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)


def evaluated(images: ImageSet) -> str:
    """The fingerprint in evaluation's score."""
    matrix = matrices("a", side=10)["a"]
    candidate = Candidate("a", lambda: Linear(matrix), 1)
    (score,) = evaluate([candidate], [images], {images.split.task: make_head()})
    return score.fingerprint


def test_the_fingerprint_is_that_of_evaluation():
    split, read = mixed(SHARD + 40)
    plain = open_images(split, PREPROCESS, cached=False)
    wanted = evaluated(plain)
    assert fingerprint(plain) == wanted
    images = ready(split)
    read.clear()
    assert fingerprint(images) == wanted == evaluated(images)
    assert read == [], "the cache knows it"
    assert images.entry
    images.entry.file(1).unlink()
    assert fingerprint(images) == wanted
    images.entry.file(0).write_bytes(b"no tensors")
    assert fingerprint(images) == wanted
    assert fingerprint(replace(images, most=1)) == evaluated(replace(images, most=1)) != wanted
    other = replace(split, labels=[*split.labels[:-1], 0])
    assert fingerprint(open_images(other, PREPROCESS, cached=False)) != wanted


def test_the_fingerprint_without_unreadable_images():
    split, _ = mixed(40, bad=(3, 17))
    plain = open_images(split, PREPROCESS, cached=False, unreadable="skip")
    images = open_images(split, PREPROCESS, unreadable="skip")
    wanted = evaluated(plain)
    assert fingerprint(images) == wanted
    make_ready(images)
    assert fingerprint(images) == fingerprint(plain) == wanted
    assert wanted == fingerprint(open_images(split.take([i for i in range(40) if i not in (3, 17)]), PREPROCESS))
    with pytest.raises(TaskError, match=r"mixed\[3\]: is not a readable image \(2 of 40 images are not\)"):
        fingerprint(replace(images, unreadable="error"))


def test_blocks_and_rows_agree():
    split, _ = mixed(60)
    (block,) = blocks(ready(split))
    rows = Rows(open_images(split, PREPROCESS))
    assert torch.equal(block.pixels, rows.pixels(range(60)))
    assert torch.equal(block.labels, rows.labels)
