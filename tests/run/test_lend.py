"""Lending a task pool's images to methods: what they get, what they are refused, and what records say of it."""

from pathlib import Path
from typing import Any

import pytest
from coloured_task import write_base, write_task
from random_experts import random_deltas, write_expert

import clipfuse
from clipfuse.cache import cache_folder
from clipfuse.data.withheld import Withheld
from clipfuse.errors import ConfigError, PoolError, TaskError
from clipfuse.fusion import streams
from clipfuse.fusion.lent import TaskImages
from clipfuse.run.bench import Bench
from clipfuse.run.convert import convert
from clipfuse.run.lend import TaskLender, open_data
from clipfuse.run.models import evaluate_models
from clipfuse.run.pipeline import run


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    """A run's tree: two experts of two tasks of colours."""
    base = write_base(tmp_path / "base")
    models = {"_pretrained_": base}
    for seed, name in enumerate(("colours", "more")):
        write_expert(tmp_path / name, Path(base), random_deltas(Path(base), seed, size=0.02), linearised=False)
        models[name] = str(tmp_path / name)
    tasks = [write_task(tmp_path, "colours"), write_task(tmp_path, "more", count=7)]
    return {"modelpool": {"models": models}, "taskpool": {"tasks": tasks}, "out": str(tmp_path / "run")}


@pytest.fixture
def lender(tree: dict[str, Any]) -> TaskLender:
    return open_data(tree["taskpool"], tree["modelpool"]["models"]["_pretrained_"])


def test_only_declared_splits_and_labels_are_lent(lender: TaskLender):
    lent = lender.lend(["colours"], ("val_images", "train_images", "train_labels"), 0)
    train, val = lent.images("colours", "train"), lent.images("colours", "val")
    assert train.labels([0, 13, 35]).tolist() == [0, 1, 2]
    with pytest.raises(ConfigError, match="val_labels: the method does not declare"):
        val.labels([0])
    with pytest.raises(ConfigError, match="test_images: the method does not declare"):
        lent.images("colours", "test")
    assert isinstance(val.source.images.split.labels, Withheld)
    assert val.source.images.entry is not None
    assert isinstance(val.source.images.entry.split.labels, Withheld)


def test_the_ledger_counts_images_looks_and_labels(lender: TaskLender):
    lent = lender.lend(["colours", "more"], ("train_images", "train_labels"), 0)
    images = lent.images("colours", "train")
    assert not lent.ledger, "what is lent has not been looked at"
    for step in range(3):
        images.pixels(images.rows(step, 24))
    images.labels([1, 2])
    (row,) = lent.ledger
    told = {key: row[key] for key in ("expert", "task", "split", "images", "of", "labels", "passes")}
    assert told == {"expert": "colours", "task": "colours", "split": "train", "images": 36, "of": 36, "labels": 2,
                    "passes": 2.0}  # fmt: skip
    few = lent.images("more", "train")
    assert few.choice(100) == list(range(21)), "all of them, where there are fewer"
    assert few.choice(5) == lender.lend(["more"], ("train_images",), 0).images("more", "train").choice(5)
    assert few.choice(5) != lender.lend(["more"], ("train_images",), 1).images("more", "train").choice(5)


def test_what_is_held_out_is_not_learned_on(lender: TaskLender):
    images = lender.lend(["colours"], ("val_images",), 0).images("colours", "val")
    rest, out = images.held_out(0.2)
    assert (rest.count, out.count) == (29, 7)
    assert sorted(rest.part + out.part) == list(range(36))
    assert set(rest.rows(0, 60)) == set(rest.part), "a stream passes over all of its part"


def test_an_expert_needs_a_task_and_a_task_its_split(tree: dict[str, Any], lender: TaskLender, tmp_path: Path):
    with pytest.raises(PoolError, match="sketches: no task of the task pool is this expert's"):
        lender.check(["sketches"], ("val_images",))
    only_test = open_data([write_task(tmp_path, "bare", splits="test")], tree["modelpool"]["models"]["_pretrained_"])
    with pytest.raises(TaskError, match="bare"):
        only_test.check(["bare"], ("train_images",))


def test_merging_takes_the_base_from_the_pool(tree: dict[str, Any]):
    pool = clipfuse.HuggingFaceClipVisionPool.from_tree(tree["modelpool"])
    merged = clipfuse.merge(pool, "regmean", images=4, data=clipfuse.open_data(tree["taskpool"]["tasks"]))
    assert [(row["rule"], row["task"], row["images"]) for row in merged.recipe["data"]] == [
        ("regmean", "colours", 4),
        ("regmean", "more", 4),
    ]
    with pytest.raises(ConfigError, match=r"regmean: looks at images \(train_images\); name their tasks"):
        clipfuse.merge(pool, "regmean")


def test_a_choice_on_val_is_in_the_ledger(tree: dict[str, Any]):
    result = run(tree | {"method": {"name": "regmean", "images": 4, "scaling_factor": [0.5, 1.0]}, "select": "val"})
    merged = [record for record in result.records if record.role == "merged"]
    seen = {(row["rule"], row["task"], row["split"]): row for row in merged[0].seen}
    assert set(merged[0].uses) == {"train_images", "val_images", "val_labels"}
    assert seen["select", "colours", "val"]["passes"] == 2
    assert seen["select", "more", "val"]["images"] == 21
    assert seen["regmean", "colours", "train"]["labels"] == 0


def test_test_images_take_leave_and_are_marked_everywhere(tree: dict[str, Any]):
    method = {"name": "adamerging", "steps": 1, "images": ["val", "test"]}
    with pytest.raises(ConfigError, match="adamerging: sees the test images that it is scored on"):
        run(tree | {"method": method})
    asked = tree | {"method": method | {"allow_test_adaptation": True}, "joint": True, "calibrate": True}
    result = run(asked)
    titles = [name for table in result.tables for name in (table.title or "", *(row[0] for row in table.rows))]
    of_test = [title for title in titles if "adamerging on test" in title]
    assert len(of_test) == len([title for title in titles if "adamerging on val" in title]) == 4
    assert all("adamerging on test (transductive)" in title for title in of_test)
    folder = Path(tree["out"])
    assert (folder / "merged_on_val/coefficients.json").is_file()
    assert "Transductive" in (folder / "merged_on_test/README.md").read_text()
    assert "transductive" in (folder / "report.json").read_text()


def test_what_a_merge_has_seen_its_merges_have_seen(tree: dict[str, Any], tmp_path: Path):
    pool = clipfuse.HuggingFaceClipVisionPool.from_tree(tree["modelpool"])
    data = clipfuse.open_data(tree["taskpool"]["tasks"])
    learned = {"name": "adamerging", "steps": 1, "images": "test", "allow_test_adaptation": True}
    clipfuse.merge(pool, learned, data=data, out=tmp_path / "first")
    models = tree["modelpool"]["models"] | {"more": str(tmp_path / "first")}
    again = clipfuse.HuggingFaceClipVisionPool.from_tree({"models": models})
    recipe = clipfuse.merge(again, "simple_average").recipe
    assert recipe["uses"] == ["test_images"]
    assert {row["rule"] for row in recipe["data"]} == {"adamerging"}
    convert(str(tmp_path / "first"), tmp_path / "other", "hf", base=models["_pretrained_"])
    assert clipfuse.load(tmp_path / "other").recipe["uses"] == ["test_images"]


def test_images_are_told_by_what_they_are_not_by_their_split_s_name(tree: dict[str, Any], tmp_path: Path):
    result = run(tree | {"method": {"name": "adamerging", "steps": 1}})
    record = next(record for record in result.records if record.role == "merged")
    assert not record.transductive
    folder = Path(tree["out"]) / "merged"
    on_val = {"taskpool": tree["taskpool"], "base": tree["modelpool"]["models"]["_pretrained_"], "split": "val"}
    (first, *_) = evaluate_models([str(folder)], on_val)
    assert first.transductive, "it has learned on these val images"
    assert record.model_copy(update={"fingerprint": record.seen[0]["fingerprint"]}).transductive


def test_what_was_learned_outlives_an_interrupted_evaluation(tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CLIPFUSE_CACHE", str(Path(tree["out"]).parent / "cache"))
    asked, looks, plain = tree | {"method": {"name": "adamerging", "steps": 3}}, [], TaskImages.pixels
    monkeypatch.setattr(streams, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(TaskImages, "pixels", lambda self, rows: looks.append(len(rows)) or plain(self, rows))

    def refuse(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Bench, "score", refuse)
        with pytest.raises(KeyboardInterrupt):
            run(asked)
    assert len(looks) == 6
    run(asked)
    assert len(looks) == 6, "the steps are not made again"
    assert not list(cache_folder("states").glob("*")), "they are gone once the run is written"
