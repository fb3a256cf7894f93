"""Images of test that are in train are found, exactly and nearly, and others are not."""

import io
from collections.abc import Callable, Sequence
from itertools import islice

import pytest
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from clipfuse.data.overlap import SIDE, Prints, overlap, take_prints
from clipfuse.data.splits import Split
from clipfuse.errors import TaskError
from clipfuse.tiny.suite import SUITE


def encoded(image: Image.Image, kind: str = "PNG", **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def split(images: Sequence[bytes]) -> Split:
    return Split("pets", "test", [0] * len(images), lambda i: images[i], lambda i: f"image {i}")


def drawn(task: str, count: int) -> list[Image.Image]:
    examples = next(tiny for tiny in SUITE if tiny.name == task).examples("train")
    return [Image.fromarray(picture) for _, picture in islice(examples, count)]


def prints(images: Sequence[Image.Image]) -> Prints:
    return take_prints(split([encoded(image) for image in images]))


def random_prints(count: int, seed: int) -> Prints:
    random = torch.Generator().manual_seed(seed)
    exact = torch.randint(256, (count, 32), generator=random, dtype=torch.uint8)
    return Prints(exact, torch.randint(256, (count, SIDE * SIDE), generator=random, dtype=torch.uint8))


def jpeg(image: Image.Image) -> Image.Image:
    return Image.open(io.BytesIO(encoded(image, "JPEG", quality=60)))


def resized(image: Image.Image) -> Image.Image:
    return image.resize((29, 29), Image.Resampling.BICUBIC)


def brighter(image: Image.Image) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1.05)


def cropped(image: Image.Image) -> Image.Image:
    return image.resize(image.size, Image.Resampling.BICUBIC, (0.32, 0.32, 31.68, 31.68))


EDITS = [jpeg, resized, brighter, cropped]


def test_planted_duplicates_are_found_whatever_they_are_encoded_as():
    images = drawn("tiny-signs", 40)
    train = prints(images[:30])
    test = take_prints(split([encoded(images[35]), encoded(images[7], "BMP"), encoded(images[36]), encoded(images[0])]))
    found = overlap(train, test, [0] * 30, [0] * 4)
    assert found.exact == [(1, 7), (3, 0)]
    assert found.near == found.conflicting == []


def test_of_equal_train_images_the_first_is_named_and_only_one():
    images = drawn("tiny-signs", 3)
    found = overlap(prints([images[0], images[1], images[1]]), prints([images[1]]), [0, 1, 2], [1])
    assert (found.exact, found.near, found.conflicting) == ([(0, 1)], [], [])


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
@pytest.mark.parametrize("task", ["tiny-digits", "tiny-vehicles"])
def test_changed_copies_are_near_and_only_they(task: str, edit: Callable[[Image.Image], Image.Image]):
    images = drawn(task, 200)
    changed = [edit(image) for image in images[80:120]]
    found = overlap(prints(images[:100]), prints(changed), [0] * 100, [0] * 40)
    assert [(row, partner) for row, partner, _ in found.near] == [(row, row + 80) for row in range(20)]
    assert not found.exact
    assert all(0 < distance <= 0.15 for _, _, distance in found.near)


def test_brightness_and_contrast_do_not_count():
    image = drawn("tiny-digits", 1)[0]
    paler = image.point([value // 2 + 100 for value in range(256)] * 3)
    [(_, _, distance)] = overlap(prints([image]), prints([paler]), [0], [0]).near
    assert distance < 0.03


def test_even_images_are_compared_exactly_only():
    even = [Image.new("RGB", (28, 28), (shade,) * 3) for shade in (0, 1, 255)]
    speck = Image.new("RGB", (28, 28))
    speck.putpixel((3, 3), (9, 9, 9))
    found = overlap(prints(even), prints([even[2], speck, Image.new("RGB", (28, 28), (2, 2, 2))]), [0] * 3, [0] * 3)
    assert (found.exact, found.near) == ([(0, 2)], [])
    assert prints([*even, speck]).flat.all()
    assert not prints(drawn("tiny-digits", 20)).flat.any()


def test_faint_thumbnails_are_near_to_nothing_on_either_side():
    strong, faint = random_prints(1, 0), random_prints(1, 1)
    strong.thumbnails[0] = torch.arange(SIDE * SIDE) % 2 * 200
    faint.thumbnails[0] = torch.arange(SIDE * SIDE) % 2 + 100
    assert overlap(strong, faint, [0], [0]) == overlap(faint, strong, [0], [0])
    assert overlap(strong, faint, [0], [0]).near == []


def test_equal_thumbnails_are_no_distance_apart():
    train = random_prints(300, 0)
    found = overlap(train, Prints(random_prints(300, 1).exact, train.thumbnails), [0] * 300, [0] * 300)
    assert found.near == [(row, row, 0.0) for row in range(300)]


def test_the_same_bytes_in_another_shape_are_another_image():
    wide, high = Image.new("RGB", (8, 2), (7, 7, 7)), Image.new("RGB", (2, 8), (7, 7, 7))
    assert overlap(prints([wide]), prints([high]), [0], [0]).exact == []


def test_search_equals_comparing_one_by_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("clipfuse.data.overlap.TESTS", 7)
    monkeypatch.setattr("clipfuse.data.overlap.TRAINS", 11)
    train, test = random_prints(60, 0), random_prints(40, 1)
    train.thumbnails[23] = 90
    test.thumbnails[5] = train.thumbnails[58]
    test.thumbnails[30] = 17
    found = overlap(train, test, [0] * 60, [0] * 40, 1.27)

    def correlation(a: Tensor, b: Tensor) -> float:
        return torch.corrcoef(torch.stack([a, b]).double())[0, 1].clamp(max=1).item()

    expected = []
    for row in range(40):
        if row != 30:
            rho, partner = max(
                (correlation(test.thumbnails[row], train.thumbnails[k]), k) for k in range(60) if k != 23
            )
            expected.append((row, partner, (2 - 2 * rho) ** 0.5))
    expected = [triple for triple in expected if triple[2] <= 1.27]
    assert 5 < len(expected) < 35
    assert [triple[:2] for triple in found.near] == [triple[:2] for triple in expected]
    assert [triple[2] for triple in found.near] == pytest.approx([triple[2] for triple in expected], abs=1e-6)
    assert (5, 58, 0.0) in found.near


def test_labels_that_disagree_are_counted_in_both_kinds():
    images = drawn("tiny-signs", 6)
    test = prints([images[0], brighter(images[1]), images[2], brighter(images[3]), images[5]])
    found = overlap(prints(images[:5]), test, [0, 1, 2, 3, 4], [0, 9, 9, 3, 9])
    assert found.exact == [(0, 0), (2, 2)]
    assert [triple[:2] for triple in found.near] == [(1, 1), (3, 3)]
    assert found.conflicting == [(1, 1), (2, 2)]


def test_an_unreadable_image_is_named():
    whole = encoded(drawn("tiny-signs", 1)[0])
    for broken in (b"not an image", whole[: len(whole) // 2], b""):
        with pytest.raises(TaskError, match=r"^pets: image 1: is not a readable image$"):
            take_prints(split([whole, broken, whole]))


def test_progress_counts_every_image_once():
    told: list[int] = []
    take_prints(split([encoded(image) for image in drawn("tiny-signs", 5)]), told.append)
    assert sum(told) == 5
