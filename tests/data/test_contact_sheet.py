"""Contact sheets show every image whole with its caption, and samples spread over the classes."""

import math
from collections import Counter

import pytest
from PIL import Image, ImageChops, ImageFont

from clipfuse.data.contact_sheet import GAP, LINE, caption_font, choose_samples, contact_sheet, shorten, width

RED, BLUE, BLACK, WHITE = (200, 0, 0), (0, 0, 200), (0, 0, 0), (255, 255, 255)


def plain(size: tuple[int, int], colour: tuple[int, int, int] = RED) -> Image.Image:
    return Image.new("RGB", size, colour)


def area(sheet: Image.Image, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """The box that holds every pixel of the colour, as left, top, width, height."""
    same = ImageChops.difference(sheet, plain(sheet.size, colour)).convert("L").point(lambda value: 255 * (value == 0))
    box = same.getbbox()
    assert box
    return box[0], box[1], box[2] - box[0], box[3] - box[1]


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((32, 32), (100, 100)),
        ((300, 300), (100, 100)),
        ((40, 20), (100, 50)),
        ((200, 400), (50, 100)),
        ((500, 1), (100, 1)),
    ],
    ids=str,
)
def test_a_tile_shows_the_whole_image_in_its_shape(size: tuple[int, int], shown: tuple[int, int]):
    left, top, *found = area(contact_sheet([("", plain(size))], tile=100), RED)
    assert tuple(found) == shown
    assert abs(left - GAP - (100 - shown[0]) / 2) <= 0.5
    assert top + shown[1] == GAP + 100


def test_small_images_keep_their_pixels():
    image = plain((2, 1))
    image.putpixel((1, 0), BLUE)
    sheet = contact_sheet([("", image)], tile=60)
    assert area(sheet, RED)[2:] == area(sheet, BLUE)[2:] == (30, 30)


def test_tiles_stand_in_rows():
    images = [("", plain((9, 9), (10 * i + 5, 0, 9))) for i in range(5)]
    sheet = contact_sheet(images, columns=4, tile=50)
    assert sheet.size == (GAP + 4 * (50 + GAP), GAP + 2 * (50 + LINE + GAP))
    for number in range(5):
        x, y = GAP + number % 4 * (50 + GAP) + 25, GAP + number // 4 * (50 + LINE + GAP) + 25
        assert sheet.getpixel((x, y)) == (10 * number + 5, 0, 9)
    assert sheet.getpixel((GAP + 2 * (50 + GAP) + 25, GAP + (50 + LINE + GAP) + 25)) == WHITE
    assert contact_sheet(images[:2], columns=9, tile=50).width == GAP + 2 * (50 + GAP)


@pytest.mark.parametrize("count", [1, 2, 7, 16, 40, 100])
def test_without_columns_a_sheet_is_wider_than_high(count: int):
    sheet = contact_sheet([("", plain((4, 4)))] * count)
    assert 0.7 < sheet.width / sheet.height < 2.6


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK", "RGBA"])
def test_every_mode_is_shown(mode: str):
    sheet = contact_sheet([("", plain((8, 8), BLACK).convert(mode))], tile=40)
    assert area(sheet, BLACK) == (GAP, GAP, 40, 40)


def test_a_palette_is_mixed_as_colours_when_it_is_made_smaller():
    striped = Image.new("P", (200, 200))
    striped.putpalette([*RED, *BLUE])
    striped.paste(1, (0, 0, 200, 99))
    assert contact_sheet([("", striped)]).tobytes() == contact_sheet([("", striped.convert("RGB"))]).tobytes()


def test_no_images_is_an_error():
    with pytest.raises(ValueError, match="no images"):
        contact_sheet([])


def test_captions_are_below_their_tile_and_within_it():
    long = "a very long name of a class that does not fit at all"
    bare = contact_sheet([("", plain((8, 8)))] * 3, 3)
    sheet = contact_sheet([("", plain((8, 8))), (long, plain((8, 8))), ("", plain((8, 8)))], 3)
    left, top, right, bottom = ImageChops.difference(bare, sheet).getbbox() or (0, 0, 0, 0)
    start = GAP + 112 + GAP
    assert start <= left < right <= start + 112
    assert right - left > 90
    assert GAP + 112 < top < bottom <= GAP + 112 + LINE + GAP // 2


def test_captions_are_shortened_to_the_longest_that_fits():
    font, name = caption_font(), "Boeing 747-400 passenger plane"
    assert shorten(name, font, 1000) == name
    found = shorten(name, font, 90)
    kept = found.removesuffix("…")
    assert found.endswith("…")
    assert name.startswith(kept)
    assert width(found, font) <= 90
    assert width(name[: len(kept) + 2] + "…", font) > 90
    assert shorten("remote control", font, math.ceil(width("remote…", font))) == "remote…"


def test_letters_that_pillow_lacks_are_replaced():
    assert shorten("crème brûlée", caption_font(), 1000) == "creme brulee"
    assert shorten("漢字 Ł", caption_font(), 1000) == "?? ?"


@pytest.mark.parametrize("missing", [TypeError, ImportError])
def test_pillow_without_scalable_letters(monkeypatch: pytest.MonkeyPatch, missing: type[Exception]):
    old = ImageFont.load_default_imagefont()

    def load_default(*size: float) -> ImageFont.ImageFont:
        if size:
            raise missing
        return old

    monkeypatch.setattr(ImageFont, "load_default", load_default)
    sheet = contact_sheet([("Łódź, a very long name of a class", plain((8, 8)))])
    assert sheet.tobytes() != contact_sheet([("", plain((8, 8)))]).tobytes()
    assert shorten("a very long name of a class", old, 100).endswith("...")


def test_samples_spread_over_classes_in_order_and_by_seed():
    labels = [0] * 50 + [3] * 2 + [1] * 50 + [4] * 50
    for count in range(1, 60):
        rows = choose_samples(labels, count, 5, 0)
        found = Counter(labels[row] for row in rows)
        assert len(set(rows)) == len(rows) == count
        assert [labels[row] for row in rows] == sorted(labels[row] for row in rows)
        assert max(found.values()) - min(found[label] for label in (0, 1, 4)) <= 1
        assert found[3] >= min(2, min(found[label] for label in (0, 1, 4)))
    assert choose_samples(labels, 9, 5, 0) == choose_samples(labels, 9, 5, 0) != choose_samples(labels, 9, 5, 1)
    assert sorted(choose_samples(labels, 999, 5, 0)) == list(range(152))


def test_few_samples_of_many_classes_are_not_always_of_the_first():
    labels = list(range(100)) * 3
    chosen = [{labels[row] for row in choose_samples(labels, 10, 100, seed)} for seed in range(5)]
    assert all(len(classes) == 10 for classes in chosen)
    assert len(set().union(*chosen)) > 25
