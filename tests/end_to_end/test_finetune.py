"""`clipfuse finetune` as it is typed: experts that a pool takes, real kills, two processes, and what is said when it fails."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from coloured_task import write_base, write_task
from random_clip import write_random_clip
from safetensors.torch import load_file

import clipfuse
from clipfuse.cli.main import main
from clipfuse.errors import ModelError, TaskError
from clipfuse.pool import HuggingFaceClipVisionPool
from clipfuse.run.finetune import fine_tune
from clipfuse.run.models import evaluate_models
from clipfuse.run.pipeline import run


def typed(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Status, standard output and standard error of one command, run in this process."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(sys, "argv", ["clipfuse", "finetune", *map(str, words)])
        main()
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


@pytest.fixture
def place(tmp_path: Path) -> dict[str, str]:
    return {"task": write_task(tmp_path / "tasks"), "base": write_base(tmp_path / "base")}


def words(settings: dict[str, Any]) -> list[str]:
    return [f"{key}={value}" for key, value in settings.items()]


def test_experts_of_one_command_are_a_pool(place: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    other = write_task(tmp_path / "tasks", "hues", count=9)
    tasks, out = f"task=[{place['task']},{other}]", tmp_path / "experts"
    status, said, _ = typed(capsys, tasks, f"base={place['base']}", "steps=30", "lr=1e-3", "--out", out)
    assert status == 0
    assert "colours: 30 steps, loss" in said
    assert "cos hues" in said
    status, said, _ = typed(capsys, tasks, f"base={place['base']}", "steps=30", "lr=1e-3", "--out", out)
    assert status == 0
    assert said.count("(was there already)") == 2
    pool = HuggingFaceClipVisionPool.from_yaml(out / "modelpool.yaml")
    assert pool.model_names == ("colours", "hues")
    done = run(
        {
            "modelpool": {"models": {n: pool.get_model_config(n).path for n in pool.all_model_names}},
            "taskpool": {"tasks": [place["task"], other], "base": place["base"]},
            "method": {"name": "task_arithmetic", "scaling_factor": 0.5},
            "out": str(tmp_path / "run"),
        }
    )
    assert {(r.role, r.model) for r in done.records} >= {("expert", "colours"), ("expert", "hues")}
    experts = evaluate_models([str(out / "colours")], {"taskpool": {"tasks": [place["task"]]}, "base": place["base"]})
    facts = json.loads((out / "colours" / "finetune.json").read_text())
    assert experts[0].accuracy > 0.9 > facts["val"]["colours"]["before"]


def test_sequential_experts_merge_by_magmax(place: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    other = write_task(tmp_path / "tasks", "hues", count=9)
    settings = (f"task=[{place['task']},{other}]", f"base={place['base']}", "steps=5", "lr=1e-3", "mode=sequential")
    assert typed(capsys, *settings, "--out", tmp_path / "sequence")[0] == 0
    pool = HuggingFaceClipVisionPool.from_yaml(tmp_path / "sequence" / "modelpool.yaml")
    merged = clipfuse.merge(pool, "magmax", scaling_factor=1.0)
    taus = [pool.task_vector(name).tensors for name in pool.model_names]
    base = load_file(Path(place["base"]) / "model.safetensors")
    for name, value in merged.tensors.items():
        mine = torch.where(taus[1][name].abs() >= taus[0][name].abs(), taus[1][name], taus[0][name])
        assert torch.allclose(value - base[f"vision_model.{name}"], mine, atol=1e-6)


def test_killed_and_interrupted_it_ends_with_the_same_bits(place: dict[str, str], tmp_path: Path):
    settings = {**place, "steps": 400, "lr": 1e-3, "save_minutes": 0.0, "validate_every": 0}
    whole = fine_tune(**settings, out=str(tmp_path / "whole"))[0]
    command = [sys.executable, "-m", "clipfuse", "finetune", *words(settings), "--out", str(tmp_path / "parts")]
    state, before = tmp_path / "parts.state.safetensors", -1
    for number, status in ((signal.SIGKILL, -9), (signal.SIGTERM, 130), (signal.SIGINT, 130)):
        process = subprocess.Popen(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
        )
        while process.poll() is None and (state.stat().st_mtime_ns if state.exists() else -1) == before:
            time.sleep(0.005)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == status, said
        before = state.stat().st_mtime_ns
        assert not (tmp_path / "parts").exists()
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        parts = fine_tune(**settings, out=str(tmp_path / "parts"))[0]
    finally:
        torch.set_num_threads(torch_threads)
    mine, its = (load_file(expert.folder / "model.safetensors") for expert in (whole, parts))
    assert all(torch.equal(value, its[name]) for name, value in mine.items())
    assert not state.exists()


def test_two_processes_take_the_steps_of_one(place: dict[str, str], tmp_path: Path):
    settings = {**place, "steps": 4, "lr": 1e-2, "optimizer": "sgd", "batch_size": 9, "micro_batch_size": 3}
    settings["val_images"] = 1  # so one of two processes has none
    one = fine_tune(**settings, out=str(tmp_path / "one"))[0]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0", "--standalone"]
    command = [
        sys.executable,
        *launcher,
        "-m",
        "clipfuse",
        "finetune",
        *words(settings),
        "--out",
        str(tmp_path / "two"),
    ]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("colours: 4 steps") == 1
    mine, its = (load_file(folder / "model.safetensors") for folder in (one.folder, tmp_path / "two"))
    start = load_file(Path(place["base"]) / "model.safetensors")
    for name, value in mine.items():
        assert (value - its[name]).norm() <= 1e-4 * (value - start[name]).norm() + 1e-6, name
    facts = [json.loads((folder / "finetune.json").read_text()) for folder in (one.folder, tmp_path / "two")]
    assert facts[0]["val"]["colours"]["n"] == facts[1]["val"]["colours"]["n"] == 1
    assert facts[0]["curve"]["loss"] == [
        [step, pytest.approx(loss, rel=1e-4)] for step, loss in facts[1]["curve"]["loss"]
    ]


def test_the_curves_go_to_tensorboard(place: dict[str, str], tmp_path: Path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    fine_tune(**place, steps=6, validate_every=3, report_to="tensorboard", out=str(tmp_path / "experts" / "colours"))
    found = next((tmp_path / "experts" / "logs").rglob("events.*"))
    kept = events.EventAccumulator(str(found.parent))
    kept.Reload()
    assert {"loss", "lr", "val/colours/accuracy"} <= set(kept.Tags()["scalars"])
    assert len(kept.Scalars("loss")) == 6
    assert [point.step for point in kept.Scalars("val/colours/accuracy")] == [0, 3, 6]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["task=gtsbr"], "unknown task 'gtsbr'; did you mean 'gtsrb'?"),
        (["recipe=publishd"], "unknown recipe 'publishd'; did you mean 'published'"),
        (["rate=1"], "finetune: unknown key 'rate'"),
        (["report_to=tensorbord"], "report_to: unknown tracker 'tensorbord'; did you mean 'tensorboard'?"),
        (["precision=float16"], "precision: float16 needs a GPU"),
        (["train=lora", "target_modules=[q_prj]"], "q_prj"),
        (["train=lora", "rank=400"], "rank"),
        (["device=cuda:7"], "device: 'cuda:7' cannot be used"),
        (["base=null"], "base: is required, as in base=openai/clip-vit-base-patch32"),
        (["validate_every=-1"], "finetune.validate_every"),
    ],
)
def test_one_line_for_what_a_user_caused(
    more: list[str], told: str, place: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    status, _, said = typed(capsys, *words({**place, "steps": 2}), *more, "--out", tmp_path / "expert")
    assert status == 2
    assert told in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "expert").exists()


def test_labels_splits_and_folders_that_do_not_fit(
    place: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def refused(*more: object) -> str:
        status, _, said = typed(capsys, *words({**place, "steps": 2}), *more)
        assert status == 2
        assert len(said.strip().splitlines()) == 1
        return said

    two = Path(place["task"]).with_name("two.yaml")
    two.write_text(Path(place["task"]).read_text().replace(', "blue"', ""))
    assert "unknown class 'blue'" in refused(f"task={two}")
    for picture in (tmp_path / "tasks/colours/train").rglob("*.png"):
        picture.unlink()
    assert "the split 'train' is empty" in refused()
    lost = Path(place["task"]).with_name("lost.yaml")
    lost.write_text(Path(place["task"]).read_text().replace('"train": "train"', '"train": "nowhere"'))
    assert "no such folder" in refused(f"task={lost}")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("x")
    assert "is not empty" in refused("--out", tmp_path / "mine")
    assert "holds 'thesis.tex', which clipfuse did not write" in refused("--out", tmp_path / "mine", "--overwrite")
    status, _, said = typed(capsys)
    assert (status, "task: is required" in said) == (2, True)


def test_an_expert_is_scored_on_the_base_that_it_says(place: dict[str, str], tmp_path: Path):
    out = tmp_path / "experts"
    for recipe in ("published", "linearised"):
        fine_tune(**place, recipe=recipe, steps=3, out=str(out / recipe))
        tree = {"taskpool": {"tasks": [place["task"]]}}
        assert evaluate_models([str(out / recipe)], tree)[0].base == place["base"]
    write_random_clip(tmp_path / "other", "smaller", seed=1)
    with pytest.raises(ModelError, match="was fine-tuned from .*base as it was then; .*other is another base"):
        evaluate_models([str(out / "linearised")], {**tree, "base": str(tmp_path / "other")})


def test_images_that_cannot_be_read_are_an_error_or_left_out(place: dict[str, str], tmp_path: Path):
    bad = sorted((tmp_path / "tasks/colours/train/green").iterdir())[0]
    bad.write_bytes(b"no picture")
    with pytest.raises(TaskError, match=f"{bad}: is not a readable image"):
        fine_tune(**place, steps=2, out=str(tmp_path / "a"))
    expert = fine_tune(**place, steps=2, unreadable="skip", out=str(tmp_path / "b"))[0]
    assert expert.facts
    assert expert.facts["tasks"][0]["images"] == 35
