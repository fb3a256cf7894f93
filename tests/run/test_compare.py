"""Two folders of records and predictions: what is compared, and what is said where that is nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_records import made_record

from clipfuse.errors import ConfigError
from clipfuse.evaluate.paired import compare, compare_average
from clipfuse.evaluate.record import Record, write_records
from clipfuse.run.compare import compare_runs, comparison_table, right

SPATTER, FOG = ({"name": name, "severity": 3, "seed": 0} for name in ("spatter", "fog"))


def answers(seed: int, n: int = 100) -> np.ndarray:
    """Which images are right."""
    return np.random.default_rng(seed).random(n) < 0.6


def known(task: str, found: np.ndarray, **facts: Any) -> tuple[Record, np.ndarray]:
    """A record with what it counts."""
    return made_record(task, int(found.sum()), len(found), **facts), found


def folder(path: Path, *scored: tuple[Record, np.ndarray]) -> Path:
    """What an evaluation leaves, but for its reports."""
    for record, found in scored:
        done = record.corruption
        inside = path / "predictions" / record.model / (f"{done['name']} {done['severity']}" if done else "")
        inside.mkdir(parents=True, exist_ok=True)
        np.savez(inside / f"{record.task}.npz", rank=np.where(found, 0, 1))
    write_records(path / "records.jsonl", [record for record, _ in scored])
    return path


def notes(a: Path, b: Path, **models: str) -> str:
    return "\n".join(comparison_table(compare_runs(a, b, **models)).notes)


def refusal(a: Path, b: Path) -> str:
    with pytest.raises(ConfigError) as error:
        compare_runs(a, b)
    return str(error.value)


def test_without_corruptions_it_is_the_comparison_of_the_tasks(tmp_path: Path):
    pairs = [(answers(0), answers(1)), (answers(2, 50), answers(3, 50))]
    a, b = (
        folder(tmp_path / side, known("gtsrb", pairs[0][number]), known("dtd", pairs[1][number]))
        for number, side in enumerate("ab")
    )
    found = compare_runs(a, b)
    assert found.tasks == {"gtsrb": compare(*pairs[0]), "dtd": compare(*pairs[1])}
    assert found.average == compare_average(pairs)
    assert (found.left_out, found.unlike) == ([], [])
    assert "adjusted for the number of tasks" in notes(a, b)


def test_an_image_under_several_corruptions_is_one_image(tmp_path: Path):
    conditions = (None, SPATTER, FOG)
    sides = [[answers(10 * side + number) for number in range(3)] for side in (1, 2)]
    a, b = (
        folder(tmp_path / name, *(known("gtsrb", f, corruption=c) for f, c in zip(found, conditions, strict=True)))
        for name, found in zip("ab", sides, strict=True)
    )
    found = compare_runs(a, b)
    assert list(found.tasks) == ["gtsrb", "gtsrb · spatter 3", "gtsrb · fog 3"]
    assert (found.average.tasks, found.average.n) == (1, 100)
    assert found.average == compare_average([(np.mean(sides[0], axis=0), np.mean(sides[1], axis=0))])
    assert found.average.difference == pytest.approx(np.mean([one.difference for one in found.tasks.values()]))
    said = notes(a, b)
    assert "adjusted for the number of rows" in said
    assert "is one image" in said


def test_what_only_one_side_has_is_left_out(tmp_path: Path):
    a = folder(tmp_path / "a", known("gtsrb", answers(0)), known("gtsrb", answers(1), corruption=FOG))
    b = folder(tmp_path / "b", known("gtsrb", answers(2)), known("dtd", answers(3)))
    assert compare_runs(a, b).left_out == ["dtd", "gtsrb · fog 3"]


LIMITED: dict[str, Any] = {"fingerprint": "a" * 64, "limit": 30, "chosen": {"limit": {"images": 30, "seed": 4}}}
CARVED: dict[str, Any] = {
    "fingerprint": "b" * 64,
    "split": "val",
    "chosen": {"carved": {"of": "train", "share": 0.1, "seed": 0}},
}


@pytest.mark.parametrize(
    ("task", "n", "facts", "said"),
    [
        ("gtsrb", 30, LIMITED, "gtsrb: 100 images of test / 30 images of test (--limit 30, seed 4)"),
        ("gtsrb", 40, CARVED, "gtsrb: 100 images of test / 40 images of val (carved from train, seed 0)"),
        ("gtsrb", 100, {"corruption": SPATTER}, "gtsrb: clean images / spatter 3 of seed 0"),
        (
            "gtsrb",
            100,
            {"fingerprint": "c" * 64},
            "images of test of sha256 ffffffff / 100 images of test of sha256 cccc",
        ),
        ("gtsrb", 98, {"fingerprint": "c" * 64, "unreadable": 2}, "/ 98 images of test (2 unreadable left out)"),
        ("dtd", 100, {}, "gtsrb / dtd; score both on a task"),
    ],
)
def test_what_differs_is_said_where_no_images_are_shared(tmp_path: Path, task: str, n: int, facts: dict, said: str):
    a, b = (
        folder(tmp_path / "a", known("gtsrb", answers(0))),
        folder(tmp_path / "b", known(task, answers(1, n), **facts)),
    )
    found = refusal(a, b)
    assert found.startswith(f"{a} and {b}: were not scored on the same images: ")
    assert said in found
    assert "; score both " in found
    assert "\n" not in found


def test_a_folder_without_records(tmp_path: Path):
    a = folder(tmp_path / "a", known("gtsrb", answers(0)))
    (tmp_path / "b").mkdir()
    assert refusal(a, tmp_path / "b").endswith("b: is no folder of a run or an evaluation (it holds no records.jsonl)")
    assert "no such file or folder" in refusal(a, tmp_path / "c")


def test_models_of_one_name_are_told_apart_by_their_folders(tmp_path: Path):
    a, b = (folder(tmp_path / name, known("gtsrb", answers(0), model="base")) for name in "ab")
    assert notes(a, b).startswith(f"A: base of {a}. B: base of {b}. ")
    other = folder(tmp_path / "other", known("gtsrb", answers(0), model="else"))
    assert notes(a, other).startswith("A: base. B: else. ")


def test_models_that_were_scored_differently_are_said_to_be(tmp_path: Path):
    a = folder(tmp_path / "a", known("gtsrb", answers(0)))
    facts = {"dtype": "bfloat16", "base": "my/clip", "temperature": 1.5}
    for key, said in (
        ("dtype", "precision float32 / bfloat16"),
        ("base", "base openai/clip-vit-base-patch32 / my/clip"),
        ("temperature", "temperature none / fitted on val"),
    ):
        b = folder(tmp_path / key, known("gtsrb", answers(1), **{key: facts[key]}))
        assert f"scored differently (A / B): {said}." in notes(a, b)
    two = [folder(tmp_path / f"t{t}", known("gtsrb", answers(1), temperature=t)) for t in (1.5, 2.5)]
    assert "differently" not in notes(*two)


def test_predictions_of_another_evaluation_are_refused(tmp_path: Path):
    record, found = known("gtsrb", answers(0))
    folder(tmp_path / "a", (record, found))
    np.testing.assert_array_equal(right(tmp_path / "a", record), found)
    folder(tmp_path / "a", (record, ~found))
    assert "does not belong to the records" in refusal(tmp_path / "a", tmp_path / "a")
