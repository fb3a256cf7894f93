"""Merges with a module for each task: made by a run, scored where the task is known, refused where they would be lost."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModel

import clipfuse
import clipfuse.fusion.prob_surgery
import clipfuse.fusion.surgery
from clipfuse.config.overrides import apply_overrides
from clipfuse.errors import CheckpointError, ConfigError, ModelError, PoolError
from clipfuse.fusion.after import kept_after
from clipfuse.fusion.chain import configure
from clipfuse.fusion.engine import prepare
from clipfuse.fusion.merge import look_at
from clipfuse.fusion.merged import Merged
from clipfuse.fusion.task_tensors import TASK_TENSORS
from clipfuse.models.clip_base import open_base
from clipfuse.models.per_task import PerTaskEncoder, corrected
from clipfuse.run.convert import convert
from clipfuse.run.identity import describe
from clipfuse.run.lend import TaskLender, open_data
from clipfuse.run.models import score_models
from clipfuse.run.pipeline import run
from clipfuse.run.publish import prepare as prepare_to_publish
from tests.coloured_task import write_base, write_task
from tests.random_experts import random_deltas, write_expert

PIXELS = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
EXPERTS = ("colours", "hues")
AFTER = {"name": "surgery", "rank": 3, "steps": 20, "batch": 4, "lr": 0.01}
MERGE: dict[str, Any] = {"method": {"name": "task_arithmetic", "scaling_factor": 0.4}, "after": AFTER}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an expert of each of two tasks, and a third task."""
    root = tmp_path_factory.mktemp("per_task")
    write_base(root / "base")
    for seed, name in enumerate(EXPERTS):
        write_expert(root / name, root / "base", random_deltas(root / "base", seed), linearised=False)
    for name in (*EXPERTS, "shades"):
        write_task(root / "tasks", name)
    return root


def pool_of(root: Path, **experts: str) -> clipfuse.HuggingFaceClipVisionPool:
    return clipfuse.HuggingFaceClipVisionPool.from_tree(models_of(root, **experts))


def models_of(root: Path, **experts: str) -> dict[str, Any]:
    paths = {"_pretrained_": "base", **(experts or dict(zip(EXPERTS, EXPERTS, strict=True)))}
    return {"models": {name: str(root / path) for name, path in paths.items()}}


def tasks_of(root: Path, *names: str) -> dict[str, Any]:
    tasks = [str(root / "tasks" / f"{name}.yaml") for name in names or (*EXPERTS, "shades")]
    return {"taskpool": {"tasks": tasks, "base": str(root / "base")}, "device": "cpu"}


def data_of(root: Path) -> TaskLender:
    return open_data(tasks_of(root)["taskpool"], device="cpu")


@pytest.fixture(scope="module")
def merged(root: Path) -> Merged:
    """In memory; `root / "merged"` is the same on disk."""
    clipfuse.merge(pool_of(root), **MERGE, data=data_of(root), out=root / "merged")
    return clipfuse.merge(pool_of(root), **MERGE, data=data_of(root))


def test_a_run_scores_what_its_folder_scores(root: Path, tmp_path: Path):
    tree = {**MERGE, **tasks_of(root), "modelpool": models_of(root), "joint": True, "calibrate": True}
    found = run({**tree, "out": str(tmp_path / "out"), "baselines": "own"})
    mine = {record.task: record for record in found.records if record.role == "merged"}
    assert set(mine) == set(EXPERTS), "not on shades, which it has no module for"
    assert {record.model for record in mine.values()} == {"task_arithmetic + surgery"}
    others = [record for record in found.records if record.role != "merged"]
    assert not any(record.needs_task_id for record in others)
    assert all(record.needs_task_id and record.joint is None and record.temperature for record in mine.values())
    assert {record.uses for record in mine.values()} == {("val_images",)}
    assert {row["rule"] for row in mine["hues"].recipe["data"]} == {"surgery"}
    assert "task_arithmetic + surgery: told the task of each image" in (tmp_path / "out/report.md").read_text()

    folder = tmp_path / "out/merged"
    models = [str(folder), str(root / "base")]
    records, again = (score_models(models, {**tasks_of(root), "calibrate": True}).records for _ in range(2))
    for record in records:
        if record.model == "merged":
            assert record.needs_task_id
            assert (record.correct, record.loss) == (mine[record.task].correct, mine[record.task].loss)
            assert set(record.source["files"]) == {"model.safetensors", TASK_TENSORS}
    assert [(record.model, record.task) for record in records].count(("merged", "shades")) == 0
    assert [record.task for record in records if record.model == "base"] == [*EXPERTS, "shades"]
    assert all(record.environment.reused for record in again)
    assert [record.loss for record in again] == [record.loss for record in records]
    plain = run({**tree, "after": None, "out": str(tmp_path / "plain"), "baselines": "none"}).records
    assert all(record.loss != mine[record.task].loss for record in plain if record.task in mine)


def test_features_are_corrected_by_the_module_of_the_task(root: Path, merged: Merged):
    base = open_base(str(root / "base"))
    plain = clipfuse.merge(pool_of(root), MERGE["method"]).encoder(base).features(PIXELS, None)
    for found in (merged, clipfuse.load(root / "merged")):
        assert found.kind == found.recipe["kind"] == "per_task"
        assert found.config["after"]["steps"] == 20
        encoder = found.encoder(base)
        assert isinstance(encoder, PerTaskEncoder)
        for task in EXPERTS:
            assert found.task_tensors[task]["up"].any()
            assert torch.equal(encoder.features(PIXELS, task), corrected(plain, found.task_tensors[task]))
        with pytest.raises(ModelError, match="unknown task 'shades'"):
            encoder.features(PIXELS, "shades")


def test_save_load_and_a_folder_hold_the_same(root: Path, merged: Merged, tmp_path: Path):
    merged.save(tmp_path / "saved")
    (root / "merged/.clipfuse").read_text().splitlines().index(TASK_TENSORS)
    for folder in (tmp_path / "saved", root / "merged"):
        found = load_file(folder / TASK_TENSORS)
        assert sorted(found) == [f"{task}/{name}" for task in EXPERTS for name in ("down", "up")]
        for task in EXPERTS:
            for name, tensor in merged.task_tensors[task].items():
                assert torch.equal(found[f"{task}/{name}"], tensor)
        again = clipfuse.load(folder)
        assert all(torch.equal(again.tensors[name], tensor) for name, tensor in merged.tensors.items())
    assert json.loads((tmp_path / "saved/clipfuse.json").read_text())["data"]


def test_transformers_alone_has_the_encoder_without_modules(root: Path, merged: Merged):
    plain = clipfuse.merge(pool_of(root), MERGE["method"]).load_model()
    model = CLIPVisionModel.from_pretrained(root / "merged").eval()
    with torch.no_grad():
        assert torch.equal(model(PIXELS).pooler_output, plain(PIXELS).pooler_output)
    with pytest.raises(ModelError, match=r"of kind per_task.*\.encoder\(\) has them"):
        merged.load_model()
    card = " ".join((root / "merged/README.md").read_text().split())
    assert "inference must know the task" in card
    assert "WITHOUT the modules" in card
    assert "merged by `task_arithmetic + surgery`" in card
    assert "library_name: clipfuse" in card
    assert "from transformers import CLIPVisionModel" not in card


def test_where_modules_would_be_lost_is_refused(root: Path, merged: Merged, tmp_path: Path):
    with pytest.raises(ModelError, match="per_task"):
        prepare_to_publish(root / "merged", "a/b", tmp_path / "published")
    for to in ("hf", "clip", "openclip", "lora"):
        with pytest.raises(ModelError, match="a module for each task"):
            convert(str(root / "merged"), tmp_path / to, to, base=str(root / "base"))
    continual = clipfuse.merge(pool_of(root), "opcm", after=AFTER, data=data_of(root))
    with pytest.raises(ConfigError, match="surgery was learned on these weights"):
        clipfuse.add(continual, root / "hues", name="third")
    assert not list(tmp_path.iterdir())


def test_other_tasks_and_lost_modules_are_told(root: Path, merged: Merged, tmp_path: Path):
    with pytest.raises(ModelError, match="merged: has modules for colours, hues only, and is to be scored on shades"):
        score_models([str(root / "merged")], tasks_of(root, "shades"))
    merged.save(tmp_path / "lost")
    (tmp_path / "lost" / TASK_TENSORS).rename(tmp_path / "away")
    for task in (clipfuse.load, lambda folder: score_models([str(folder)], tasks_of(root))):
        with pytest.raises(CheckpointError, match=f"holds no {TASK_TENSORS}"):
            task(tmp_path / "lost")
    save_file({"up": torch.zeros(1)}, tmp_path / "lost" / TASK_TENSORS)
    with pytest.raises(CheckpointError, match="'up' is no tensor of a task"):
        clipfuse.load(tmp_path / "lost")


def test_scores_are_of_these_modules(root: Path, merged: Merged, tmp_path: Path):
    merged.save(tmp_path / "merged")
    first = score_models([str(tmp_path / "merged")], tasks_of(root)).records
    path = tmp_path / "merged" / TASK_TENSORS
    tensors = {name: -3 * tensor if name.endswith("up") else tensor for name, tensor in load_file(path).items()}
    save_file(tensors, path)
    other = score_models([str(tmp_path / "merged")], tasks_of(root)).records
    assert not any(record.environment.reused for record in other)
    assert all(one.loss != two.loss for one, two in zip(first, other, strict=True))


def test_modules_are_those_of_the_value_that_was_chosen(root: Path, tmp_path: Path):
    tree = {**tasks_of(root, *EXPERTS), "modelpool": models_of(root), "select": "val", "after": AFTER}
    method = {"name": "task_arithmetic", "scaling_factor": [0.3, 0.4]}
    found = run({**tree, "method": method, "out": str(tmp_path / "out"), "baselines": "none"})
    again = clipfuse.merge(
        pool_of(root), "task_arithmetic", scaling_factor=found.chosen, after=AFTER, data=data_of(root)
    )
    for task, tensors in clipfuse.load(tmp_path / "out/merged").task_tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, again.task_tensors[task][name])


def test_what_an_interrupted_learning_goes_on_from_depends_on_all_that_made_the_weights(root: Path, merged: Merged):
    def key(dtype: torch.dtype = torch.float32, after: Any = AFTER, finishes: Any = (), **settings: Any) -> str | None:
        chain = configure({**MERGE["method"], **settings}, (), finishes, after=after)
        prepared = prepare(chain, look_at(pool_of(root).weights), lender=data_of(root))
        found = kept_after(prepared, {"a": torch.zeros(1, dtype=dtype)}).key
        assert found is not None
        assert prepared.kept.key is not None
        assert found.startswith(f"{prepared.kept.key}-"), "goes with the merge's own"
        return found

    others = [key(torch.float16), key(scaling_factor=0.5), key(after={**AFTER, "lr": 0.02}), key(finishes=["expo"])]
    assert len({key(), *others}) == 5
    assert key() == key()


def test_two_experts_of_one_task_are_refused(root: Path):
    pool = pool_of(root, colours="colours", COLOURS="hues")
    with pytest.raises(PoolError, match="colours and COLOURS are both experts of colours"):
        clipfuse.merge(pool, **MERGE, data=data_of(root))


def test_names_are_those_of_tasks(root: Path):
    found = clipfuse.merge(pool_of(root, Colours="colours", HUES="hues"), **MERGE, data=data_of(root))
    assert sorted(found.task_tensors) == ["colours", "hues"]


def test_test_images_are_asked_for_twice(root: Path):
    after = {**AFTER, "images": "test"}
    with pytest.raises(ConfigError, match=r"surgery: sees the test images .* after\.allow_test_adaptation=true"):
        clipfuse.merge(pool_of(root), "simple_average", after=after, data=data_of(root))
    after["allow_test_adaptation"] = True
    found = clipfuse.merge(pool_of(root), "simple_average", after=after, data=data_of(root))
    assert found.recipe["uses"] == ["test_images"]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"after": "surgeri"}, "unknown after 'surgeri'; did you mean 'surgery'"),
        ({"after": AFTER, "data": None}, "surgery: looks at images"),
        ({"after": {**AFTER, "rang": 3}}, "did you mean 'rank'"),
    ],
)
def test_what_cannot_be_learned_is_told_first(root: Path, how: dict[str, Any], told: str):
    with pytest.raises(ConfigError, match=told):
        clipfuse.merge(pool_of(root), "task_arithmetic", **{"data": data_of(root), **how})


def test_what_comes_after_is_named_on_the_command_line_like_a_method():
    tree = apply_overrides({}, ["after=surgery", "after.steps=5"])
    assert tree == {"after": {"name": "surgery", "steps": 5}}
    assert apply_overrides({"after": "surgery"}, ["after.rank=3"]) == {"after": {"name": "surgery", "rank": 3}}
    assert apply_overrides({"after": AFTER}, ["after=null"]) == {"after": None}


def test_a_folder_says_which_tasks_it_has_modules_for(root: Path, merged: Merged):
    assert describe(str(root / "merged"))["modules for the tasks"] == "colours, hues"
    assert "modules for the tasks" not in describe(str(root / "base"))
