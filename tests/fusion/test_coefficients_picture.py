"""The picture of merging coefficients: numbers are where they should be, and no coefficients make it fail."""

import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from xml.etree.ElementTree import Element

import pytest
import torch

from clipfuse.checkpoints.geometry import Geometry, parameter_shapes
from clipfuse.fusion.coefficients import Coefficients
from clipfuse.fusion.coefficients_picture import COLOUR, RIGHT, TOP, WIDTH, coefficients_svg, elided, round_ticks

SVG = "{http://www.w3.org/2000/svg}"
LAYER = "encoder.layers.{}.mlp.fc1."


def learned(experts: int, layers: int = 12, size: float = 0.1) -> Coefficients:
    names = list(parameter_shapes(Geometry(num_hidden_layers=layers)))
    values = 0.3 + size * torch.randn(len(names), experts, generator=torch.Generator().manual_seed(0))
    rows = {name: tuple(row) for name, row in zip(names, values.tolist(), strict=True)}
    return Coefficients(tuple(f"expert-{number}" for number in range(experts)), rows)


def parsed(picture: str, kind: str) -> list[Element]:
    return list(ElementTree.fromstring(picture).iter(f"{SVG}{kind}"))


def words(picture: str) -> list[str]:
    return [found.text or "" for found in parsed(picture, "text")]


def points(found: Element) -> list[tuple[float, float]]:
    x, y = zip(*(map(float, point.split(",")) for point in found.attrib["points"].split()), strict=True)
    return list(zip(x, y, strict=True))


def levels(picture: str) -> dict[float, float]:
    """y of the grid's lines in the first panel by their values."""
    left = min(float(found.attrib["x1"]) for found in parsed(picture, "line"))
    labels = [found for found in parsed(picture, "text") if found.get("text-anchor") == "end" and found.text != "post"]
    found = {float(label.text or ""): float(label.attrib["y"]) - 4 for label in labels}
    drawn = {float(line.attrib["y1"]) for line in parsed(picture, "line") if float(line.attrib["x1"]) == left}
    assert {*found.values()} <= drawn
    return found


def test_lines_are_means_and_bands_ranges():
    rows = {
        "embeddings.class_embedding": (0.4, 0.0),
        "pre_layrnorm.bias": (0.2, 0.0),
        LAYER.format(0) + "weight": (-0.1, 0.2),
        LAYER.format(10) + "weight": (0.1, 0.2),
        LAYER.format(9) + "weight": (0.3, 0.2),
        LAYER.format(9) + "bias": (0.1, 0.2),
        "post_layernorm.bias": (0.1, 0.6),
    }
    picture = coefficients_svg(Coefficients(("digits", "signs"), rows), "t")
    grid = levels(picture)
    unit = (grid[0.2] - grid[0.0]) / 0.2

    def values(found: Element) -> list[float]:
        return [round((y - grid[0.0]) / unit, 2) for _, y in points(found)]

    band, _ = parsed(picture, "polygon")
    mean, line, _, _ = parsed(picture, "polyline")
    below = min(float(found.attrib["y"]) for found in parsed(picture, "text") if found.text == "emb")
    heights = [y for found in parsed(picture, "polygon") for _, y in points(found)]
    assert TOP < min(heights) < TOP + 10
    assert below - 24 < max(heights) < below - 14
    assert values(line) == pytest.approx([0.3, -0.1, 0.2, 0.1, 0.1], abs=0.01)
    assert values(band) == pytest.approx([0.4, -0.1, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1, -0.1, 0.2], abs=0.01)
    assert values(mean) == pytest.approx([0.15, 0.05, 0.2, 0.15, 0.35], abs=0.01)
    assert len({round(b - a, 0) for (a, _), (b, _) in pairwise(points(line))}) == 1


@pytest.mark.parametrize(("experts", "layers"), [(1, 12), (5, 2), (8, 12), (20, 24)])
def test_every_expert_has_a_panel_inside_the_picture(experts: int, layers: int):
    found = learned(experts, layers)
    picture = coefficients_svg(found, "AdaMerging <on> ViT")
    assert picture == coefficients_svg(found, "AdaMerging <on> ViT")
    said = words(picture)
    assert said[0] == "AdaMerging <on> ViT"
    assert [word for word in said if word.startswith("expert-")] == list(found.experts)
    assert said.count("emb") == said.count("post") == experts
    lines = parsed(picture, "polyline")
    assert len(lines) == (2 * experts if experts > 1 else 1)
    height = float(ElementTree.fromstring(picture).attrib["height"])
    assert all(0 < x <= WIDTH - RIGHT and 0 < y < height for line in lines for x, y in points(line))
    assert all(float(word.attrib["y"]) < height - 5 for word in parsed(picture, "text"))


def test_labels_below_a_panel_do_not_touch():
    for layers in (1, 2, 3, 12, 24, 48):
        picture = coefficients_svg(learned(4, layers), "t")
        below = [found for found in parsed(picture, "text") if (found.text or "").isdigit() or found.text == "emb"]
        row = [found for found in below if found.get("font-size") == "10"]
        xs = [float(found.attrib["x"]) for found in row if float(found.attrib["x"]) < 205]
        assert all(b - a >= 12 for a, b in pairwise(xs)), layers


def test_an_expert_has_a_bar_where_it_has_one_number():
    picture = coefficients_svg(Coefficients(("digits", "signs", "a" * 80), {"all": (0.3, -0.15, 0.0)}, "task"), "t")
    long, negative, zero = parsed(picture, "rect")
    ends = [(float(bar.attrib["x"]), float(bar.attrib["width"])) for bar in (long, negative, zero)]
    assert ends[0][1] == pytest.approx(2 * ends[1][1], abs=0.11)
    assert ends[1][0] + ends[1][1] == pytest.approx(ends[0][0], abs=0.11)
    assert ends[2] == (ends[0][0], 0.0)
    assert {"0.3", "-0.15", "0", "digits", elided("a" * 80, 40)} <= {*words(picture)}
    assert long.attrib["fill"] == COLOUR


@pytest.mark.parametrize("value", [0.3, 0.0, -0.2, 3.4e38, -3.4e38, 1e-45])
def test_any_numbers_can_be_drawn(value: float):
    names = [LAYER.format(number) + "weight" for number in range(3)]
    for rows in (dict.fromkeys(names, (value, value)), {names[0]: (value, 0.1)}, {"x": (value, -value)}):
        picture = coefficients_svg(Coefficients(("a", "b"), rows), "t")
        assert "nan" not in picture
        assert "inf" not in picture
        assert len(parsed(picture, "polyline")) == 4
    bars = coefficients_svg(Coefficients(("a", "b"), {"all": (value, value)}, "task"), "t")
    assert all(0 <= float(bar.attrib["x"]) + float(bar.attrib["width"]) < WIDTH for bar in parsed(bars, "rect"))


def test_strange_names_stay_names():
    picture = coefficients_svg(Coefficients(("<b>&\x00", "x" * 500), {"y": (0.1, 0.2)}), "\ud800 <title>" * 99)
    assert "<b>&" in words(picture)
    assert max(map(len, words(picture))) < 125
    assert elided("clip-vit-base-patch32_sun397", 20) == "clip-v…atch32_sun397"
    assert len(elided("x" * 50, 20)) == 20


def test_ticks_are_round_and_hold_zero_and_both_ends():
    assert round_ticks(0.3, 0.3) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert round_ticks(-0.3, -0.1) == pytest.approx([-0.3, -0.2, -0.1, 0])
    assert len(round_ticks(0, 0)) > 1
    for low, high in ((-0.31, 0.97), (0.1, 1234.5), (-2e-6, 1e-7), (-3e38, 3e38)):
        ticks = round_ticks(low, high)
        assert ticks[0] <= low
        assert ticks[-1] >= high
        assert 0 in ticks
        assert 4 <= len(ticks) <= 9
