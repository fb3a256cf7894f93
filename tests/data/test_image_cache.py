"""The image cache: same bits, made once, resumed, checked, shared by processes, bounded."""

import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from picture_splits import make_split, picture_bytes

from clipfuse.data import Preprocess, Split, blocks, make_ready, open_images
from clipfuse.data.image_cache import ABOUT, IN_USE, SHARD, entries, open_entry, read_shard, verify
from clipfuse.errors import ConfigError, OutputError, TaskError

SIZES = [(8, 8), (5, 9), (16, 16), (40, 7), (30, 20), (11, 12)]
PREPROCESS = Preprocess(12, 10)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("CLIPFUSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "images"


def mixed(count: int, name: str = "mixed", bad: tuple[int, ...] = ()) -> tuple[Split, list[int]]:
    """A split of pictures of many sizes, some of them unreadable; and the rows that were read so far."""
    read: list[int] = []
    raw = [b"no image" if i in bad else picture_bytes(i, *SIZES[i % len(SIZES)]) for i in range(count)]

    def load(row: int) -> bytes:
        read.append(row)
        return raw[row]

    origin = {"made up": name, "count": count}
    return Split(name, "test", [i % 3 for i in range(count)], load, lambda i: f"{name}[{i}]", origin), read


def pixels(split: Split, cached: bool) -> torch.Tensor:
    return torch.cat([block.pixels for block in blocks(open_images(split, PREPROCESS, cached))])


def test_the_bits_are_those_of_decoding_and_decoding_happens_once():
    split, read = mixed(SHARD + 50)
    plain = pixels(split, cached=False)
    read.clear()
    images = open_images(split, PREPROCESS)
    told: list[int] = []
    assert images.lacking == len(split)
    make_ready(images, told.append)
    assert told == [SHARD, 50]
    assert sorted(read) == list(range(len(split)))
    assert torch.equal(pixels(split, cached=True), plain)
    assert len(read) == len(split), "nothing was decoded again"
    assert open_images(split, PREPROCESS).lacking == 0


def test_small_images_are_kept_as_they_are(cache: Path):
    split, _ = mixed(6)
    images = open_images(split, PREPROCESS)
    make_ready(images)
    assert images.entry
    found = read_shard(images.entry.file(0), 6)
    kept = [(image.shape[2], image.shape[1]) for image in found.images]
    assert kept == [(8, 8), (5, 9), (10, 10), (10, 10), (10, 10), (10, 10)]
    assert found.native.tolist() == [True, True, False, False, False, False]


def test_building_goes_on_where_it_was_stopped(cache: Path):
    split, read = mixed(2 * SHARD + 9)
    images = open_images(split, PREPROCESS)

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_ready(images, stop)
    assert images.lacking == SHARD + 9
    assert not list(cache.rglob("*.part"))
    read.clear()
    make_ready(images)
    assert min(read) == SHARD, "the first shard was not decoded again"


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "other"])
def test_damage_is_found_and_mended(cache: Path, harm: str, caplog: pytest.LogCaptureFixture):
    split, _ = mixed(30)
    plain = pixels(split, cached=False)
    images = open_images(split, PREPROCESS)
    make_ready(images)
    assert images.entry
    path = images.entry.file(0)
    whole = path.read_bytes()
    changed = bytearray(whole)
    changed[-7] ^= 1
    path.write_bytes({"flip": bytes(changed), "cut": whole[:-1], "empty": b"", "other": b"not a file of tensors"}[harm])
    assert verify(images.entry.folder) == [path]
    with caplog.at_level(logging.WARNING):
        assert torch.equal(pixels(split, cached=True), plain)
    assert "it is made again" in caplog.text
    assert path.read_bytes() == whole
    assert verify(images.entry.folder) == []


def test_another_origin_preprocessing_or_choice_is_another_entry():
    split, _ = mixed(30)
    other, _ = mixed(30, "other")
    ways = [
        open_entry(split, PREPROCESS),
        open_entry(other, PREPROCESS),
        open_entry(split, Preprocess(12, 11)),
        open_entry(split, Preprocess(13, 10)),
        open_entry(split.take(range(29)), PREPROCESS),
    ]
    assert len({entry.folder for entry in ways if entry}) == len(ways)
    same = open_entry(split, Preprocess(12, 10, mean=(0.0, 0.0, 0.0)))
    assert same
    assert ways[0]
    assert same.folder == ways[0].folder, "mean and deviation come after the cache"


def test_without_identity_nothing_is_cached():
    split = Split("x", "test", [0], lambda i: picture_bytes(0))
    assert open_images(split, PREPROCESS).entry is None


def test_unreadable_images_are_named_and_counted_or_left_out():
    split, _ = mixed(40, bad=(3, 17))
    with pytest.raises(
        TaskError, match=r"mixed\[3\]: is not a readable image \(2 of 40 images are not\); unreadable=skip"
    ):
        make_ready(open_images(split, PREPROCESS))
    with pytest.raises(TaskError, match=r"mixed\[3\]: is not a readable image \(2 of 40"):
        list(blocks(open_images(split, PREPROCESS, cached=False)))
    for cached in (True, False):
        images = open_images(split, PREPROCESS, cached, "skip")
        make_ready(images)
        (block,) = blocks(images)
        assert (len(block.labels), block.unreadable) == (38, 2)
        good = [i for i in range(40) if i not in (3, 17)]
        assert block.labels.tolist() == [i % 3 for i in good]
        clean, _ = mixed(40)
        assert torch.equal(block.pixels, pixels(clean, cached=False)[good])


def test_what_was_used_longest_ago_makes_room(cache: Path, monkeypatch: pytest.MonkeyPatch):
    import os

    folders = []
    for number, name in enumerate("abc"):
        images = open_images(mixed(200, name)[0], PREPROCESS)
        make_ready(images)
        assert images.entry
        folders.append(images.entry.folder)
        os.utime(images.entry.folder / ABOUT, (number, number))
    size = sum(size for _, size, _ in entries()) // 3
    monkeypatch.setenv("CLIPFUSE_CACHE_LIMIT", f"{int(3.5 * size)}")
    os.utime(folders[0] / ABOUT, (9, 9))
    IN_USE.clear()  # as in another process
    make_ready(open_images(mixed(200, "d")[0], PREPROCESS))
    assert [folder.is_dir() for folder in folders] == [True, False, True]


def test_what_does_not_fit_is_decoded_each_time(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """Images of one job do not make room for each other, and the limit holds."""
    monkeypatch.setenv("CLIPFUSE_CACHE_LIMIT", "100kB")
    splits = [mixed(200, name)[0] for name in "abc"]
    with caplog.at_level(logging.WARNING):
        sets = [open_images(split, PREPROCESS) for split in splits]
        for images in sets:
            make_ready(images)
    assert "the image cache is full after 0 images" in caplog.text
    found = list(entries())
    assert 0 < len(found) < 3
    assert sum(size for _, size, _ in found) < 110_000
    for split, images in zip(splits, sets, strict=True):
        (block,) = blocks(images)
        assert torch.equal(block.pixels, pixels(split, cached=False))
    assert len(list(entries())) == len(found)
    monkeypatch.setenv("CLIPFUSE_CACHE_LIMIT", "much")
    with pytest.raises(ConfigError, match="CLIPFUSE_CACHE_LIMIT: takes bytes"):
        open_images(mixed(30)[0], PREPROCESS)


def test_a_failing_disk_says_nothing_about_an_image(cache: Path):
    split, _ = mixed(5)

    def fail(row: int) -> bytes:
        raise OSError(5, "Input/output error")

    with pytest.raises(TaskError, match=r"mixed\[\d\]: cannot be read \(Input/output error\)"):
        make_ready(open_images(replace(split, read=fail), PREPROCESS, unreadable="skip"))
    images = open_images(split, PREPROCESS, unreadable="skip")
    make_ready(images)
    (block,) = blocks(images)
    assert len(block.labels) == 5


def test_a_damaged_description_is_damage(cache: Path):
    images = open_images(mixed(5)[0], PREPROCESS)
    make_ready(images)
    assert images.entry
    (images.entry.folder / ABOUT).write_text("{")
    assert [path.name for path in verify(images.entry.folder)] == [ABOUT, "00000.safetensors"]


def test_a_cache_that_cannot_be_written_is_told_in_one_line(cache: Path):
    images = open_images(mixed(30)[0], PREPROCESS)
    assert images.entry
    images.entry.folder.write_text("in the way")
    with pytest.raises(OutputError, match="image_cache=false"):
        make_ready(images)


FILL = """
import sys
sys.path.insert(0, sys.argv[1])
from picture_splits import make_split, PREPROCESS
from clipfuse.data import open_images, make_ready
make_ready(open_images(make_split("shared", 3000), PREPROCESS))
"""


def test_two_processes_may_build_the_same_entry(cache: Path):
    tests = str(Path(__file__).parents[1])
    both = [subprocess.Popen([sys.executable, "-c", FILL, tests], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        assert process.wait() == 0, process.stderr and process.stderr.read()
        assert process.stderr
        process.stderr.close()
    (folder,) = cache.iterdir()
    assert {path.name for path in folder.iterdir()} == {ABOUT, *(f"{i:05d}.safetensors" for i in range(3))}
    assert verify(folder) == []
    from picture_splits import PREPROCESS as EIGHT

    split = make_split("shared", 3000)
    found = torch.cat([block.pixels for block in blocks(open_images(split, EIGHT))])
    assert torch.equal(found, torch.cat([block.pixels for block in blocks(open_images(split, EIGHT, cached=False))]))
