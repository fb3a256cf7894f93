"""Linearised experts from folders to merges, their scores, and what they may be written as."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import clipfuse
from clipfuse.checkpoints.geometry import read_geometry
from clipfuse.checkpoints.locate import locate
from clipfuse.errors import ModelError, PoolError
from clipfuse.evaluate.sweep import sweep_candidates
from clipfuse.fusion.sweep import sweep
from clipfuse.models.clip_base import open_base
from clipfuse.run.convert import convert
from clipfuse.run.identity import describe
from clipfuse.run.models import candidate, score_models
from clipfuse.run.pipeline import run
from clipfuse.run.publish import prepare
from tests.random_clip import write_random_clip
from tests.random_experts import random_deltas, write_expert

PIXELS = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
EXPERTS = ("a", "b")
TASKS = {"tasks": ["tiny-digits", "tiny-signs"]}
SUITE: dict[str, Any] = {"taskpool": TASKS, "limit": 60, "device": "cpu"}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, linearised experts a and b, an ordinary one, and the merge of a and b with λ = 0.4 in a folder."""
    root = tmp_path_factory.mktemp("models")
    write_random_clip(root / "base", "small")
    for seed, name in enumerate(EXPERTS):
        write_expert(root / name, root / "base", random_deltas(root / "base", seed, size=0.02))
    write_expert(root / "plain", root / "base", random_deltas(root / "base", 2), linearised=False)
    clipfuse.merge(pool_of(root), "task_arithmetic", scaling_factor=0.4, out=root / "merged")
    clipfuse.merge(pool_of(root), "opcm", out=root / "continual")
    return root


def pool_of(root: Path, *names: str) -> clipfuse.HuggingFaceClipVisionPool:
    models = {"_pretrained_": root / "base", **{name: root / name for name in names or EXPERTS}}
    return clipfuse.HuggingFaceClipVisionPool.from_tree({"models": {name: str(at) for name, at in models.items()}})


def features_of(root: Path, name: str) -> Tensor:
    """Of the model as it is opened for evaluation."""
    opened = candidate(name, locate(str(root / name)), open_base(str(root / "base"))).open()
    return opened.features(PIXELS, None)


def relative(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_task_arithmetic_of_linearised_experts_is_arithmetic_of_their_features(root: Path):
    zero = features_of(root, "base")
    wanted = 0.4 * torch.stack([features_of(root, name) - zero for name in EXPERTS]).sum(0)
    in_memory = clipfuse.merge(pool_of(root), "task_arithmetic", scaling_factor=0.4)
    loaded = clipfuse.load(root / "merged")
    for merged in (in_memory, loaded):
        found = merged.encoder(open_base(str(root / "base"))).features(PIXELS, None) - zero
        assert relative(found, wanted) < 1e-4
        assert merged.recipe["linearised"] is True
        with pytest.raises(ModelError, match=r"is linearised, a CLIPVisionModel has .*\.encoder\(\) of a merge"):
            merged.load_model()
    assert relative(loaded.encoder().features(PIXELS, None) - zero, wanted) < 1e-4  # the recipe knows the base
    assert read_geometry(root / "merged").linearised
    ordinary = pool_of(root, "plain")
    plain = clipfuse.merge(ordinary, "task_arithmetic")
    assert "linearised" not in plain.recipe
    assert plain.load_model()


def test_a_merged_folder_scores_as_the_merge_in_memory(root: Path, tmp_path: Path):
    clipfuse.merge(pool_of(root), "task_arithmetic", scaling_factor=0.4).save(tmp_path / "saved")
    models = [str(at) for at in (root / "merged", tmp_path / "saved", root / "a", root / "base")]
    records = score_models(models, {**SUITE, "base": str(root / "base")}).records
    losses = {(record.model, record.task): record.loss for record in records}
    for task in TASKS["tasks"]:
        assert losses["merged", task] == losses["saved", task]
        assert len({losses[model, task] for model in ("merged", "a", "base")}) == 3


def test_a_sweep_is_evaluated_as_its_merges(root: Path):
    found = sweep(pool_of(root), "task_arithmetic", scaling_factor=[0.0, 0.4, 1.0])
    base = open_base(str(root / "base"))
    candidates = sweep_candidates(found, base, torch.device("cpu"))
    for value in (0.4, 0.0, 1.0, 0.4):
        encoder = candidates[value].open()
        wanted = clipfuse.merge(pool_of(root), "task_arithmetic", scaling_factor=value).encoder(base)
        torch.testing.assert_close(encoder.features(PIXELS, None), wanted.features(PIXELS, None), rtol=1e-6, atol=1e-6)


def test_a_run_chooses_and_measures_the_linearised_merge(root: Path, tmp_path: Path):
    models = {name: str(root / at) for name, at in (("_pretrained_", "base"), ("tiny-digits", "a"), ("b", "b"))}
    method = {"name": "task_arithmetic", "scaling_factor": [0.4, 0.8]}
    tree = {**SUITE, "modelpool": {"models": models}, "method": method, "select": "val", "out": str(tmp_path / "run")}
    found = run(tree)
    again = score_models([str(tmp_path / "run/merged")], {**SUITE, "base": str(root / "base")}).records
    merged = {record.task: record.loss for record in found.records if record.role == "merged"}
    assert merged == {record.task: record.loss for record in again}
    expert = next(record for record in found.records if record.role == "expert")
    alone = score_models([str(root / "a")], {**SUITE, "base": str(root / "base")}).records
    assert expert.loss == next(record.loss for record in alone if record.task == expert.task)


def test_what_show_model_says(root: Path):
    assert describe(str(root / "a"))["family"] == "linearised (NTK) vision tower"
    merged = describe(str(root / "merged"), deep=True)
    assert merged["family"] == "linearised (NTK) vision tower, merged by clipfuse"
    assert merged["geometry"].endswith("quick_gelu, linearised")
    assert describe(str(root / "plain"))["family"] == "transformers CLIPVisionModel"


def test_a_candidate_says_what_memory_it_takes(root: Path):
    base = open_base(str(root / "base"))
    linear, plain = (candidate(name, locate(str(root / name)), base) for name in ("a", "plain"))
    assert linear.bytes == 2 * plain.bytes == linear.open().bytes
    assert linear.parameters == plain.parameters


def test_hf_keeps_the_flag_and_other_formats_refuse(root: Path, tmp_path: Path):
    convert(str(root / "a"), tmp_path / "hf", "hf")
    assert read_geometry(tmp_path / "hf") == read_geometry(root / "a")
    at = candidate("hf", locate(str(tmp_path / "hf")), open_base(str(root / "base")))
    assert torch.equal(at.open().features(PIXELS, None), features_of(root, "a"))
    for to in ("clip", "openclip", "lora"):
        with pytest.raises(ModelError, match=f"a: is linearised, which the format {to} cannot say; hf can$"):
            convert(str(root / "a"), tmp_path / to, to, base=str(root / "base"))
        assert not (tmp_path / to).exists()


def test_the_card_and_what_is_published_say_so(root: Path, tmp_path: Path):
    card = (root / "merged/README.md").read_text()
    assert "transformers alone would run it as a non-linear model" in card
    assert "library_name: clipfuse" in card
    assert "CLIPVisionModel.from_pretrained" not in card
    clipfuse.merge(pool_of(root, "plain"), "task_arithmetic", out=tmp_path / "plain")
    card = (tmp_path / "plain/README.md").read_text()
    assert "lineari" not in card
    assert "CLIPVisionModel.from_pretrained" in card
    published = prepare(root / "merged", "org/name", tmp_path / "published")
    assert read_geometry(published).linearised
    assert clipfuse.load(published).recipe["linearised"] is True
    card = (published / "README.md").read_text()
    assert "transformers alone would run it as a non-linear model" in card
    assert "hf download org/name --local-dir this/folder" in card
    with pytest.raises(ModelError, match="is linearised, which a full CLIP cannot be; publish it without --clip$"):
        prepare(root / "merged", "org/name", tmp_path / "clip", clip=True)


def test_adding_needs_the_same_forward_pass(root: Path, tmp_path: Path):
    write_expert(tmp_path / "c", root / "base", random_deltas(root / "base", 5, size=0.02))
    added = clipfuse.add(root / "continual", tmp_path / "c", out=tmp_path / "three")
    assert added.known_geometry.linearised
    assert json.loads((tmp_path / "three/clipfuse.json").read_text())["linearised"] is True
    clipfuse.merge(pool_of(root, "plain"), "opcm", out=tmp_path / "ordinary")
    with pytest.raises(PoolError, match="continual is linearised, plain is not: a merge has one forward pass$"):
        clipfuse.add(root / "continual", root / "plain")
    with pytest.raises(PoolError, match="c is linearised, .*ordinary is not: a merge has one forward pass$"):
        clipfuse.add(tmp_path / "ordinary", tmp_path / "c")
