"""The picture of a training: what is drawn where, and that no data make it fail."""

import math
import xml.etree.ElementTree as ElementTree
from xml.etree.ElementTree import Element

import pytest

from clipfuse.report.curve_picture import (
    MOST,
    PANEL_HEIGHT,
    PANEL_TOP,
    WIDTH,
    curve_picture,
    round_ticks,
    smoothed,
    step_ticks,
    thinned,
)

SVG = "{http://www.w3.org/2000/svg}"
LOSSES = [(10 * (i + 1), 3 * math.exp(-i / 40) + 0.1 * (i % 3)) for i in range(400)]
ACCURACY = [(0, 0.34), (2000, 0.9), (4000, 0.98)]


def parsed(picture: str) -> Element:
    return ElementTree.fromstring(picture)


def words(picture: str) -> list[str]:
    return [found.text or "" for found in parsed(picture).iter(f"{SVG}text")]


def lines(picture: str) -> list[list[tuple[float, float]]]:
    """Points of every polyline, px."""
    found = [line.attrib["points"].split() for line in parsed(picture).iter(f"{SVG}polyline")]
    return [[(float(point.split(",")[0]), float(point.split(",")[1])) for point in points] for points in found]


def test_losses_are_a_thin_line_and_a_smoothed_one_and_accuracies_a_line_with_markers():
    picture = curve_picture("On gtsrb", LOSSES, {"gtsrb": ACCURACY})
    raw, bold, accuracy = lines(picture)
    assert (len(raw), len(bold), len(accuracy)) == (400, 400, 3)
    assert len(list(parsed(picture).iter(f"{SVG}circle"))) == 3
    said = words(picture)
    assert said[0] == "On gtsrb"
    assert {"training loss, nats", "bold: mean of 21 points", "accuracy on val, %"} <= {*said}
    assert {"step 0: before training", "34.0", "98.0", "4,000"} <= {*said}
    assert said.count("steps") == 2
    assert "gtsrb" not in said  # one line needs no legend


def test_points_are_where_their_values_are():
    _, _, accuracy = lines(curve_picture("t", LOSSES, {"gtsrb": ACCURACY}))
    assert [y for _, y in accuracy] == pytest.approx(
        [PANEL_TOP + PANEL_HEIGHT * (100 - value) / 80 for value in (34, 90, 98)], abs=0.06
    )  # the axis goes from 20 to 100
    assert accuracy[1][0] - accuracy[0][0] == pytest.approx(accuracy[2][0] - accuracy[1][0], abs=0.11)
    [loss] = lines(curve_picture("t", [(0, 0.0), (5, 2.0), (10, 1.0)]))
    assert [y for _, y in loss] == [PANEL_TOP + PANEL_HEIGHT, PANEL_TOP, PANEL_TOP + PANEL_HEIGHT / 2]


def test_several_tasks_have_a_legend_and_lines_that_differ():
    accuracies = {f"task {i}": [(0, 0.1), (10, 0.02 * i + 0.4)] for i in range(20)}
    picture = curve_picture("jointly", [(5, 2.0), (10, 1.0)], accuracies)
    assert len(lines(picture)) == 21
    assert {*accuracies} <= {*words(picture)}
    drawn = [line.attrib for line in parsed(picture).iter(f"{SVG}polyline")][1:]
    assert len({(line["stroke"], line.get("stroke-dasharray")) for line in drawn}) == 20
    height = float(parsed(picture).attrib["height"])
    assert all(float(found.attrib["y"]) < height - 5 for found in parsed(picture).iter(f"{SVG}text"))


def test_a_panel_without_points_is_left_out_and_the_other_is_wide():
    losses = lines(curve_picture("t", LOSSES))[0]
    assert losses[-1][0] - losses[0][0] > WIDTH * 0.8
    assert "accuracy on val, %" not in words(curve_picture("t", LOSSES, {"gtsrb": []}))
    assert "training loss, nats" not in words(curve_picture("t", [], {"gtsrb": ACCURACY}))
    assert words(curve_picture("t", [])) == ["t", "nothing was logged"]


@pytest.mark.parametrize(
    "losses",
    [
        [(1, 2.0)],
        [(0, 0.0)],
        [(1, 0.0), (2, 0.0)],
        [(step, 1.5) for step in range(1, 100)],
        [(1, 1e-30), (2, 1e30)],
        [(1, 1e299)] * 40,
        [(1, math.nan)],
        [(1, 2.0), (2, math.inf), (3, 1.7e308)],
        [(1, -0.5), (2, -0.25)],
        [(10**9, 2.0)],
    ],
)
@pytest.mark.parametrize("accuracy", [[], [(0, 0.0)], [(0, 1.0), (3, 1.0)], [(0, 0.5)], [(0, math.nan)]])
def test_no_data_make_it_fail_and_all_of_it_is_inside(losses: list, accuracy: list):
    picture = curve_picture("t", losses, {"a": accuracy})
    assert "nan" not in picture
    assert "inf" not in picture
    for x, y in (point for line in lines(picture) for point in line):
        assert 0 <= x <= WIDTH
        assert PANEL_TOP - 0.1 <= y <= PANEL_TOP + PANEL_HEIGHT + 0.1


def test_losses_that_are_not_finite_are_counted():
    assert "2 not finite" in words(curve_picture("t", [(1, 2.0), (2, math.inf), (3, math.nan)]))


def test_texts_are_escaped():
    name = '<b>&"\x00\ufffe'
    picture = curve_picture(name, [], {name: ACCURACY, "b": ACCURACY})
    assert words(picture).count('<b>&"') == 2
    assert parsed(picture).findtext(f"{SVG}title") == '<b>&"'


def test_the_same_data_give_the_same_text_and_nothing_is_fetched():
    picture = curve_picture("t", LOSSES, {"a": ACCURACY})
    assert picture == curve_picture("t", tuple(LOSSES), {"a": tuple(ACCURACY)})
    assert picture.count("http") == 1  # the namespace
    assert "<script" not in picture
    assert "url(" not in picture


def test_long_trainings_are_thinned_to_means():
    losses = [(step, float(step % 2)) for step in range(100_000)]
    assert len(curve_picture("t", losses)) < 20_000
    assert len(thinned(losses)) == MOST
    assert thinned([(1, 1.0), (2, 3.0)]) == [(1, 1.0), (2, 3.0)]
    assert {value for _, value in thinned(losses)} == {0.5}


def test_a_moving_mean_keeps_to_the_points_that_there_are():
    points = [(1, 3.0), (2, 6.0), (3, 0.0), (4, 9.0)]
    assert smoothed(points, 3) == [(1, 4.5), (2, 3.0), (3, 5.0), (4, 4.5)]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 4, [0, 1, 2, 3, 4]),
        (0, 0.031, [0, 0.01, 0.02, 0.03, 0.04]),
        (28.9, 100, [20, 40, 60, 80, 100]),
        (0, 0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 3e7, [0, 1e7, 2e7, 3e7]),
    ],
)
def test_ticks_are_round_and_hold_the_values(low: float, high: float, ticks: list[float]):
    assert round_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("last", "ticks"), [(1, [0, 1]), (3, [0, 1, 2, 3]), (4000, [0, 1000, 2000, 3000, 4000]), (24, [0, 5, 10, 15, 20])]
)
def test_ticks_of_steps_are_whole_and_within(last: int, ticks: list[int]):
    assert step_ticks(last) == ticks
