"""The tables of records, and the files that are written of them."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from made_records import made_record

from clipfuse.evaluate.record import Record
from clipfuse.report import Table, results_table, results_tables
from clipfuse.report.results import calibration_table
from clipfuse.report.write import write_report

NORMED: dict[str, Any] = {"normalised": 0.5}


def corruption(name: str) -> dict[str, Any]:
    return {"name": name, "severity": 3, "seed": 0}


def scored(model: str, figures: dict[str | None, tuple[int, int]], **facts: Any) -> list[Record]:
    """Records of a model on two tasks of 100 images: corruption → images that are right."""
    facts = {"role": "other", "model": model} | facts
    return [
        made_record(task, right, 100, None, **facts, corruption=corruption(name) if name else None)
        for name, counts in figures.items()
        for task, right in zip(("gtsrb", "dtd"), counts, strict=True)
    ]


def by_name(table: Table) -> dict[str, dict[str, str]]:
    return {row[0]: dict(zip(table.header[1:], row[1:], strict=True)) for row in table.rows}


A = scored("a", {None: (90, 70), "spatter": (50, 30), "fog": (40, 21)})
B = scored("b", {None: (80, 60), "spatter": (60, 20), "fog": (10, 10)})


def test_plain_names_in_the_json_are_clean_results(tmp_path: Path):
    write_report(tmp_path, [results_table([*A, *B])], [*A, *B], ["a", "b"])
    found = {entry["model_info"]["name"]: entry for entry in json.loads((tmp_path / "report.json").read_text())}
    assert list(found) == [f"{model}{done}" for model in "ab" for done in ("", " · spatter 3", " · fog 3")]
    assert found["a"]["gtsrb"]["accuracy"] == 0.9
    assert found["a · spatter 3"]["gtsrb"]["accuracy"] == 0.5
    assert found["b · fog 3"]["average"]["accuracy"] == pytest.approx(0.1)


def test_one_row_in_the_json_is_an_object_under_its_own_name(tmp_path: Path):
    for records, name in ((A[:2], "a"), (A[2:4], "a · spatter 3")):
        write_report(tmp_path, [results_table(records)], records, ["a"])
        assert json.loads((tmp_path / "report.json").read_text())["model_info"]["name"] == name


def test_notes_are_in_the_latex_file_and_not_in_the_csv_one(tmp_path: Path):
    write_report(tmp_path, results_tables(A), A, ["a"])
    assert (
        "\n% Top-1 accuracy in per cent on test images (gtsrb 100, dtd 100); ±" in (tmp_path / "report.tex").read_text()
    )
    rows = list(csv.reader((tmp_path / "report.csv").read_text().splitlines()))
    assert {len(row) for row in rows} == {5}


def test_columns_that_no_row_needs_are_left_out():
    assert results_table(A).header == ["model", "gtsrb", "dtd", "average", "±"]
    assert "norm.:" not in str(results_table(A).notes)
    merged = scored("m", {None: (50, 50)}, role="merged")
    assert results_table([*A, *merged]).header[4:] == ["±", "data seen"]
    assert [row[-1] for row in results_table([*A[:2], *merged]).rows] == ["", "none"]
    half = [made_record("gtsrb", 50, 100, **NORMED), made_record("dtd", 50, 100)]
    assert "norm." not in results_table(half).header
    assert "norm.:" not in str(results_table(half).notes)
    whole = results_table([half[0], half[1].model_copy(update=NORMED), *A])
    assert by_name(whole)["ties_merging"]["norm."] == "50.0"
    assert by_name(whole)["a"]["norm."] == "–"
    assert "norm.:" in str(whole.notes)


def test_published_rows_are_as_wide_as_the_table():
    for facts in ({}, NORMED, {"role": "base"}):
        table = results_table([made_record("dtd", 44, 100, None, **facts)], published=True)
        table.csv()


def test_means_over_corruptions_stand_below():
    found = by_name(results_table([*A, *B]))
    assert list(found)[-2:] == ["a · mean of 2 corruptions", "b · mean of 2 corruptions"]
    assert found["a · mean of 2 corruptions"] == {"gtsrb": "45.0", "dtd": "25.5", "average": "35.2", "±": "–"}
    assert not [name for name in by_name(results_table(A[:4])) if "mean" in name], "of one corruption"
    partly = by_name(results_table([*A[:5], *B]))
    assert partly["a · mean of 2 corruptions"] == {"gtsrb": "45.0", "dtd": "–", "average": "–", "±": "–"}


def test_normalised_means_over_corruptions():
    records = [record.model_copy(update={"normalised": record.accuracy / 2}) for record in A]
    found = by_name(results_table(records))
    assert (found["a"]["norm."], found["a · mean of 2 corruptions"]["norm."]) == ("40.0", "17.6")


def test_bold_is_within_one_condition():
    lines = [line.split(" & ")[:2] for line in results_table([*A, *B]).latex().splitlines() if " & " in line][1:]
    bold = [name.strip().replace(r" $\cdot$ ", " ") for name, cell in lines if "textbf" in cell]
    assert set(bold) == {"a", "a fog 3", "a mean of 2 corruptions", "b spatter 3"}
    assert "textbf" not in results_table(A).latex(), "no condition has two models"


def test_the_limit_is_told_of_where_images_were_left_out():
    asked = made_record("dtd", 5, 10, limit=500)
    cut = made_record("dtd", 5, 10, limit=10, chosen={"limit": {"images": 10, "seed": 0}})
    assert "--limit" not in str(results_table([asked]).notes)
    assert "--limit" in str(results_table([asked, cut]).notes)


def tempered(task: str, temperature: float, **facts: Any) -> Record:
    return made_record(
        task, 5, 10, entropy=0.25, temperature=temperature, tempered_loss=4.0, tempered_ece=0.05, **facts
    )


def test_temperatures_have_a_geometric_mean_and_bounds_are_named():
    table = calibration_table([tempered("gtsrb", 100.0), tempered("dtd", 1.0), tempered("svhn", 0.1)])
    assert table.rows == [["ties_merging", "10.0", "0.500", "0.250", "2.15", "5.0", "0.400"]]
    assert "ended at a bound, 0.01 or 100: ties_merging on gtsrb (100)." in str(table.notes)
    both = [tempered("gtsrb", 0.01), tempered("gtsrb", 0.01, corruption=corruption("fog"))]
    assert str(calibration_table(both).notes).count("ties_merging on gtsrb (0.01)") == 1
    assert "bound" not in str(calibration_table([tempered("dtd", 1.2)]).notes)


def test_a_val_that_is_carved_from_train_is_named():
    val: dict[str, Any] = {"n": 2664, "correct": 9}
    carved = val | {"carved": {"of": "train", "share": 0.1, "seed": 0}}
    notes = calibration_table([tempered("gtsrb", 1.2, val=carved), tempered("dtd", 1.2, val=val)]).notes
    assert [note for note in notes if "tenth" in note] == ["val of gtsrb is a tenth of train (2,664 images)."]
