"""Evaluating, comparing, auditing and the cache, as a user types them, on the offline suite."""

import csv
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from clipfuse.cli.main import main
from clipfuse.evaluate.record import read_records
from clipfuse.run.tasks import draw_tiny, get_task

WEIGHTS = "pkg://clipfuse/tiny/weights"
BASE = f"base={WEIGHTS}/base"
TASKS = "taskpool={tasks: [tiny-digits, tiny-signs]}"
SIGNS, DIGITS = f"{WEIGHTS}/tiny-signs", f"{WEIGHTS}/tiny-digits"


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command in this process: status, standard output, standard error."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipfuse", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capsys.readouterr()
        return int(left.value.code or 0), out, err

    return run


def one_line(found: tuple[int, str, str]) -> str:
    status, out, err = found
    assert (status, out) == (2, ""), err
    assert err.count("\n") == 1, err
    return err


def test_everything_that_is_measured_agrees_with_the_predictions(command: Any, tmp_path: Path):
    out = tmp_path / "out"
    words = (BASE, TASKS, "calibrate=true", "joint=true", "--limit", 150, "--out", out)
    status, said, err = command("evaluate", SIGNS, DIGITS, *words)
    assert status == 0, err
    assert "Joint label space" in said
    assert "Calibration" in said
    for record in read_records(out / "records.jsonl"):
        with np.load(out / f"predictions/{record.model}/{record.task}.npz") as found:
            rank, label, said_class = found["rank"], found["label"], found["prediction"]
            assert ((said_class == label) == (rank == 0)).all()
            assert (record.n, record.correct, record.top5) == (150, (rank == 0).sum(), (rank < 5).sum())
            assert record.loss == pytest.approx(found["loss"].astype(float).sum())
            assert record.tempered_loss == pytest.approx(found["tempered_loss"].astype(float).sum())
            assert [n for n, _ in record.per_class] == np.bincount(label, minlength=record.classes).tolist()
            assert sum(right for _, right in record.per_class) == record.correct
            assert sum(images for _, _, images in record.confused) <= record.n - record.correct
            assert record.joint
            assert sum(record.joint["as_task"].values()) == record.n
            assert record.joint["correct"] <= record.correct
            assert 0 <= record.ece <= 1
        assert record.val
        assert 0 < record.val["correct"] < record.val["n"] == 150
        assert record.chosen["limit"] == {"images": 150, "seed": 0}
    rows = list(csv.reader((out / "report.csv").read_text().splitlines()))
    assert rows[0][0] == "model"
    assert {row[0] for row in rows[1:]} == {"tiny-signs", "tiny-digits"}
    assert "\\toprule" in (out / "report.tex").read_text()


def test_an_evaluation_is_not_repeated_and_knows_a_renamed_model(command: Any, tmp_path: Path):
    from clipfuse.checkpoints.locate import local_path

    shutil.copytree(local_path(SIGNS), tmp_path / "copy")
    words = (BASE, TASKS, "--limit", 123, "--json")
    first, again, copy = (
        json.loads(command("evaluate", model, *words)[1]) for model in (SIGNS, SIGNS, tmp_path / "copy")
    )
    assert [record["environment"]["reused"] for record in first + again + copy] == [False] * 2 + [True] * 4
    assert [record["correct"] for record in first] == [record["correct"] for record in copy]
    anew = json.loads(command("evaluate", SIGNS, *words, "reuse=false", "image_cache=false")[1])
    assert [record["environment"]["reused"] for record in anew] == [False, False]
    assert [record["loss"] for record in anew] == [record["loss"] for record in first]


def test_an_expert_that_is_far_better_on_test_than_on_val_is_named(command: Any, tmp_path: Path):
    """As after training on test images; here the classes of val are mixed up instead."""
    digits = get_task("tiny-digits")
    draw_tiny([digits], ["test"])
    drawn = Path(str(digits.folder)) / "test"
    shutil.copytree(drawn, tmp_path / "test")
    for name, other in zip(digits.classes, [*digits.classes[1:], digits.classes[0]], strict=True):
        shutil.copytree(drawn / name, tmp_path / "val" / other)
    splits = {"val": "val", "test": "test"}
    tree = {"name": "known", "folder": ".", "splits": splits, "classes": [*digits.classes], "templates": ["a {c}."]}
    (tmp_path / "known.yaml").write_text(yaml.safe_dump(tree))
    words = ("evaluate", DIGITS, BASE, "calibrate=true", "--limit", 200)
    status, said, err = command(*words, f"taskpool.tasks=[{tmp_path / 'known.yaml'}]")
    assert status == 0, err
    assert "tiny-digits on known: accuracy on test" in said
    assert "was it trained on test images?" in said
    assert "trained on test images" not in command(*words, "taskpool.tasks=[tiny-digits]")[1]


def test_corruptions_stand_beside_the_clean_images(command: Any, tmp_path: Path):
    words = (BASE, "taskpool={tasks: [tiny-signs]}", "corruption=[none,contrast]", "severity=[1,5]", "--limit", 100)
    status, said, err = command("evaluate", SIGNS, *words, "--out", tmp_path / "out")
    assert status == 0, err
    for name in ("tiny-signs ", "tiny-signs · contrast 1", "tiny-signs · contrast 5"):
        assert f"\n{name}" in said
    records = read_records(tmp_path / "out/records.jsonl")
    assert [record.corruption and record.corruption["severity"] for record in records] == [None, 1, 5]
    assert len({record.loss for record in records}) == 3
    assert (tmp_path / "out/predictions/tiny-signs/contrast 5/tiny-signs.npz").is_file()
    assert "did you mean 'contrast'" in one_line(command("evaluate", SIGNS, BASE, TASKS, "corruption=contrst"))
    assert "severity: takes 1 to 5" in one_line(command("evaluate", SIGNS, BASE, TASKS, "corruption=all", "severity=6"))


def test_comparing_runs(command: Any, tmp_path: Path):
    a, b = tmp_path / "a", tmp_path / "b"
    for model, out in ((SIGNS, a), (DIGITS, b)):
        assert command("evaluate", model, BASE, TASKS, "--limit", 150, "--out", out)[0] == 0
    found = json.loads(command("compare", a, b, "--json")[1])
    right = {
        name: [
            np.load(out / f"predictions/{model}/{name}.npz")["rank"] == 0
            for model, out in (("tiny-signs", a), ("tiny-digits", b))
        ]
        for name in ("tiny-digits", "tiny-signs")
    }
    for name, (one, other) in right.items():
        assert found["tasks"][name]["difference"] == pytest.approx(other.mean() - one.mean())
        assert found["tasks"][name]["only_a"] == (one & ~other).sum()
        assert found["adjusted"][name] >= found["tasks"][name]["p"]
    same = json.loads(command("compare", a, a, "--json")[1])
    assert same["average"]["difference"] == 0
    assert same["average"]["p"] == 1
    status, said, _ = command("compare", a, b)
    assert status == 0
    assert "p (Holm)" in said
    assert "did you mean 'tiny-signs'" in one_line(command("compare", a, b, "--model-a", "tiny-sign"))
    assert "no such file" in one_line(command("compare", a, tmp_path / "none"))
    (b / "predictions/tiny-digits/tiny-signs.npz").unlink()
    assert "holds no predictions" in one_line(command("compare", a, b))


def test_tasks_that_were_not_merged_are_averaged_apart(command: Any, tmp_path: Path):
    pool = {"models": {"_pretrained_": f"{WEIGHTS}/base", "tiny-signs": SIGNS, "tiny-aerial": f"{WEIGHTS}/tiny-aerial"}}
    (tmp_path / "pool.yaml").write_text(yaml.safe_dump({"type": "huggingface_clip_vision", **pool}, sort_keys=False))
    words = (
        "method=simple_average",
        f"modelpool={tmp_path / 'pool.yaml'}",
        TASKS,
        "--limit",
        80,
        "-o",
        tmp_path / "run",
    )
    status, said, err = command("run", *words)
    assert status == 0, err
    assert "unseen" in said
    merged = {r.task: r for r in read_records(tmp_path / "run/records.jsonl") if r.role == "merged"}
    base = {r.task: r for r in read_records(tmp_path / "run/records.jsonl") if r.role == "base"}
    assert {task: record.merged_task for task, record in merged.items()} == {"tiny-digits": False, "tiny-signs": True}
    for task, record in merged.items():
        assert record.over_base == pytest.approx(record.accuracy - base[task].accuracy)
    assert merged["tiny-signs"].over_expert is not None
    assert merged["tiny-digits"].over_expert is None


def test_lower_precision_says_how_it_differs(command: Any):
    status, said, _ = command("evaluate", SIGNS, BASE, TASKS, "--precision", "bfloat16", "--limit", 100, "--json")
    assert status == 0
    for record in json.loads(said):
        seen = record["versus_float32"]
        assert record["dtype"] == "bfloat16"
        assert seen["n"] == 100
        assert abs(seen["correct"] - seen["correct_float32"]) <= seen["differ"]
    assert "tf32 is of CUDA" in one_line(
        command("evaluate", SIGNS, BASE, TASKS, "--precision", "tf32", "--device", "cpu")
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_a_compiled_tower_gives_the_same_predictions(command: Any):
    words = ("evaluate", SIGNS, BASE, TASKS, "--limit", 200, "--json")
    plain, compiled = (json.loads(command(*words, more)[1]) for more in ("compile=false", "compile=true"))
    for one, other in zip(plain, compiled, strict=True):
        assert one["correct"] == other["correct"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert one["fingerprint"] == other["fingerprint"]
        assert not other["environment"]["reused"], "a compiled tower's scores are kept apart"


def pictures(folder: Path) -> Path:
    """A task of noise, with two test images that are in train, one under another label."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for number in range(20):
                array = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(array).resize((48, 48)).save(folder / split / name / f"{number}.png")
    shutil.copy(folder / "train/cat/3.png", folder / "test/cat/5.png")
    shutil.copy(folder / "train/cat/4.png", folder / "test/dog/6.png")
    tree = {"name": "pets", "folder": ".", "classes": ["cat", "dog"], "templates": ["a {c}."]}
    (folder / "pets.yaml").write_text(yaml.safe_dump(tree))
    return folder / "pets.yaml"


def test_auditing_a_task(command: Any, tmp_path: Path):
    task = pictures(tmp_path / "pets")
    status, said, err = command("audit", "task", task, "--picture", tmp_path / "pairs.png")
    assert status == 0, err
    assert "2 test images are in train exactly, 0 nearly; 1 with other labels" in said
    with Image.open(tmp_path / "pairs.png") as picture:
        assert picture.width > 100
    found = json.loads(command("audit", "task", task, "--json")[1])
    assert [Path(pair["train"]).name for pair in found["pairs"]] == ["3.png", "4.png"]
    expert = json.loads(command("audit", "task", "tiny-signs", f"expert={SIGNS}", BASE, "--json")[1])["expert"]
    assert expert["warning"] is None
    assert expert["test"]["n"] == 1600
    assert "png" in one_line(command("audit", "task", task, "--picture", "pairs"))


def test_samples_of_a_task(command: Any, tmp_path: Path):
    status, _, err = command("show", "task", "tiny-signs", "--samples", 12, "--out", tmp_path / "sheet.png")
    assert status == 0, err
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.size > (200, 100)
    assert "--samples: is for tasks" in one_line(command("show", "method", "magmax", "--samples", 2))


def test_the_cache_is_listed_verified_and_emptied(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CLIPFUSE_CACHE", str(tmp_path / "cache"))
    task = pictures(tmp_path / "pets")
    assert command("evaluate", SIGNS, BASE, f"taskpool.tasks=[{task}]")[0] == 0
    rows = {row["kind"]: row for row in json.loads(command("cache", "ls", "--json")[1])}
    assert {"images", "heads", "scores", "hashes"} <= rows.keys()
    assert rows["images"]["name"].startswith("pets-test-")
    assert "0 files damaged" in command("cache", "verify")[1]
    shard = tmp_path / "cache/images" / rows["images"]["name"] / "00000.safetensors"
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    assert "1 files damaged" in command("cache", "verify")[1]
    assert not shard.exists()
    (tmp_path / "cache/somebody's").mkdir()
    assert "unknown entry 'image'" in one_line(command("cache", "rm", "image"))
    assert command("cache", "rm", "scores")[0] == 0
    assert not (tmp_path / "cache/scores").exists()
    assert command("cache", "rm", "all")[0] == 0
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["somebody's"]


def test_wrong_words_are_one_line(command: Any, monkeypatch: pytest.MonkeyPatch):
    assert "batch_size" in one_line(command("evaluate", SIGNS, BASE, TASKS, "batch_size=0"))
    assert "unreadable" in one_line(command("evaluate", SIGNS, BASE, TASKS, "unreadable=ignore"))
    assert "did you mean 'calibrate'" in one_line(command("evaluate", SIGNS, BASE, TASKS, "calibrat=true"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "run: is for one process" in one_line(command("run", "method=magmax", "modelpool=tiny_TA8", TASKS))
