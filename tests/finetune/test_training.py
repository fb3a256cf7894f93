"""Fine-tuning end to end on a very small CLIP: right, repeatable, resumable, and nothing else is touched."""

import json
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from coloured_task import write_base, write_task
from safetensors.torch import load_file
from torch.nn import functional
from transformers import CLIPModel, CLIPVisionModel

from clipfuse.checkpoints.applied import applied
from clipfuse.checkpoints.checkpoint import open_checkpoint
from clipfuse.cli.finetune import line_of
from clipfuse.config.presets import load_preset
from clipfuse.data import open_images, open_split, read_preprocess
from clipfuse.data.gather import Rows
from clipfuse.errors import ConfigError, ModelError, OutputError, TaskError
from clipfuse.evaluate.workers import Workers
from clipfuse.finetune.train import Training
from clipfuse.heads import zero_shot_heads
from clipfuse.models.clip_base import open_base
from clipfuse.order import Order
from clipfuse.run.convert import convert
from clipfuse.run.finetune import fine_tune
from clipfuse.tasks import read_task

STEPS, LR = 12, 1e-3
KINDS = {
    "full": {},
    "attention": {"recipe": "attention"},
    "lora": {"recipe": "lora", "target_modules": ["q_proj", "v_proj", "fc1"], "rank": 4},
    "l_lora": {"recipe": "l_lora", "rank": 4},
    "linearised": {"recipe": "linearised"},
}


@pytest.fixture
def place(tmp_path: Path) -> dict[str, Any]:
    """Settings that every training here has."""
    task = write_task(tmp_path / "tasks")
    return {"task": task, "base": write_base(tmp_path / "base"), "steps": STEPS, "lr": LR, "validate_every": 5}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class Killed(Exception):
    """Stands for a process that is gone."""


def killed_at(step: int) -> Callable[..., Any]:
    """A stage that dies when so many steps are done."""

    @contextmanager
    def stage(title: str, total: int, unit: str) -> Iterator[Callable[..., None]]:
        done = 0

        def told(count: int, on: object = None) -> None:
            nonlocal done
            done += count
            if title.startswith("fine-tune") and done > step:
                raise Killed

        yield told

    return stage


def test_it_is_the_loop_that_one_would_write(place: dict[str, Any], tmp_path: Path):
    expert = fine_tune(**place, out=str(tmp_path / "expert"))[0]
    model = CLIPModel.from_pretrained(place["base"]).train()
    base, task = open_base(place["base"]), read_task(Path(place["task"]))
    preprocess = read_preprocess(base.folder)
    head = zero_shot_heads(base, [task])[task.name]
    rows = Rows(open_images(open_split(task, "train"), preprocess))
    optimizer, order = torch.optim.Adam(model.vision_model.parameters(), LR), Order(36, task.name, 0)
    for step in range(STEPS):
        chosen = order.take(32 * step, 32)
        pooled = model.vision_model(pixel_values=preprocess.normalise(rows.pixels(chosen))).pooler_output
        features = functional.normalize(model.visual_projection(pooled), dim=-1)
        loss = functional.cross_entropy(
            model.logit_scale.exp().detach() * features @ head.weights.T, rows.labels[chosen]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    theirs = CLIPVisionModel.from_pretrained(expert.folder).state_dict()
    mine = dict(model.vision_model.named_parameters())
    before = CLIPVisionModel.from_pretrained(place["base"]).state_dict()
    for name, value in mine.items():
        moved = (value - before[name]).norm()
        if name.endswith(
            "k_proj.bias"
        ):  # its gradient is zero but for rounding, which Adam makes as large as the others
            continue
        assert (value - theirs[name]).norm() <= 1e-4 * moved + 1e-6, name
    assert expert.facts
    assert expert.facts["val"]["colours"]["after"] > expert.facts["val"]["colours"]["before"]
    assert [step for step, _ in expert.facts["curve"]["accuracy"]["colours"]] == [0, 5, 10, 12]
    assert "12 steps" in line_of(expert)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_call_gives_the_same_files_and_text_stays(kind: str, place: dict[str, Any], tmp_path: Path):
    before = files(Path(place["base"]))
    settings = place | KINDS[kind] | {"augment": {"random_resized_crop": [0.5, 1.0], "brightness": 0.2}}
    first, second = (fine_tune(**settings, out=str(tmp_path / name / "expert"))[0] for name in "ab")
    assert files(first.folder) == files(second.folder)
    assert files(Path(place["base"])) == before
    assert not list(first.folder.parent.glob("*.state*"))
    if kind == "linearised":
        return
    convert(str(first.folder), tmp_path / "clip", "clip", base=place["base"])
    old, new = (load_file(folder / "model.safetensors") for folder in (Path(place["base"]), tmp_path / "clip"))
    moved = {name for name, value in old.items() if not torch.equal(value, new[name])}
    assert moved
    assert all(name.startswith("vision_model.") for name in moved), "text tower, projections and logit_scale"
    if kind != "full":
        ends = (
            ("_proj.weight",) if kind in ("attention", "l_lora") else ("q_proj.weight", "v_proj.weight", "fc1.weight")
        )
        assert all(name.endswith(ends) for name in moved)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_ten_steps_it_ends_with_the_same_bits(kind: str, place: dict[str, Any], tmp_path: Path):
    settings = place | KINDS[kind] | {"augment": {"horizontal_flip": 0.5}, "save_minutes": 0.0}
    whole = fine_tune(**settings, out=str(tmp_path / "whole"))[0]
    for step in sorted(random.Random(kind).sample(range(1, STEPS), 10)):
        with pytest.raises(Killed):
            fine_tune(killed_at(step), **settings, out=str(tmp_path / "parts"))
        assert not (tmp_path / "parts").exists()
    assert (tmp_path / "parts.state.safetensors").is_file()
    parts = fine_tune(**settings, out=str(tmp_path / "parts"))[0]
    assert files(parts.folder) == files(whole.folder)


def test_the_accumulated_gradient_is_that_of_the_whole_batch(place: dict[str, Any], tmp_path: Path):
    once = place | {"optimizer": "sgd", "lr": 1e-3}
    how = {"a": {}, "b": {"micro_batch_size": 5}, "c": {"micro_batch_size": 7, "gradient_checkpointing": True}}
    found = {}
    for name, settings in how.items():
        fine_tune(**once, **settings, out=str(tmp_path / name))
        found[name] = load_file(tmp_path / name / "model.safetensors")
    start = load_file(Path(place["base"]) / "model.safetensors")
    for name, value in found["a"].items():
        moved = float((value - start[name]).norm())
        for other in "bc":
            assert float((found[other][name] - value).norm()) <= 1e-4 * moved + 1e-6, name


def test_joint_is_the_sum_over_tasks(place: dict[str, Any], tmp_path: Path):
    other = write_task(tmp_path / "tasks", "hues", count=9)
    once = place | {"optimizer": "sgd", "lr": 0.5, "steps": 1}
    alone = [
        fine_tune(**once | {"task": t}, out=str(tmp_path / f"{i}"))[0] for i, t in enumerate((place["task"], other))
    ]
    both = fine_tune(**once | {"task": [place["task"], other]}, mode="joint", out=str(tmp_path / "joint"))[0]
    start = load_file(Path(place["base"]) / "model.safetensors")
    first, second, joint = (load_file(expert.folder / "model.safetensors") for expert in (*alone, both))
    for name in joint:
        tau = (first[name] - start[name]) + (second[name] - start[name])
        assert torch.allclose(joint[name] - start[name], tau, atol=1e-6, rtol=1e-3), name
    assert both.facts
    assert set(both.facts["val"]) == {"colours", "hues"}


def test_each_of_a_sequence_begins_with_the_one_before(place: dict[str, Any], tmp_path: Path):
    other = write_task(tmp_path / "tasks", "hues", count=9)
    tasks = [place["task"], other]
    found = fine_tune(**place | {"task": tasks}, mode="sequential", out=str(tmp_path / "sequence"))
    again = fine_tune(**place, out=str(tmp_path / "alone"))[0]
    assert (
        load_file(found[0].folder / "model.safetensors").keys() == load_file(again.folder / "model.safetensors").keys()
    )
    frozen = fine_tune(**place | {"task": tasks, "lr": 1e-30}, mode="sequential", out=str(tmp_path / "frozen"))
    one, two = (load_file(expert.folder / "model.safetensors") for expert in frozen)
    assert all(torch.allclose(value, two[name], atol=1e-20) for name, value in one.items()), "nothing was learnt"
    first, second = (load_file(expert.folder / "model.safetensors") for expert in found)
    base = load_file(Path(place["base"]) / "model.safetensors")
    far, near = (sum(float((second[n] - other[n]).square().sum()) for n in second) for other in (base, first))
    assert near < far
    assert found[1].facts
    assert found[1].facts["start"]
    pool = load_preset("modelpool", str(tmp_path / "sequence" / "modelpool.yaml"))
    assert [member["name"] for member in pool["models"]] == ["_pretrained_", "colours", "hues"]


def test_a_sequence_of_linearised_experts_moves_on(place: dict[str, Any], tmp_path: Path):
    other = write_task(tmp_path / "tasks", "hues", count=9)
    settings = place | {"task": [place["task"], other], "recipe": "linearised", "mode": "sequential"}
    first, second = (e.folder for e in fine_tune(**settings | {"lr": 1e-30}, out=str(tmp_path / "s")))
    one, two = (load_file(folder / "model.safetensors") for folder in (first, second))
    assert all(torch.allclose(one[name], two[name], atol=1e-7) for name in one)


def test_a_loss_that_is_nan_stops_and_keeps_the_last_good_state(place: dict[str, Any], tmp_path: Path):
    settings = place | {"optimizer": "sgd", "lr": 1e30, "out": str(tmp_path / "expert")}
    with pytest.raises(
        ModelError, match=r"the loss is nan at step 2 of 12 .*colours/train/.*after step 1 is kept in .*lr"
    ):
        fine_tune(**settings)
    state = tmp_path / "expert.state.safetensors"
    facts, kept = json.loads(read_metadata(state)), load_file(state)
    assert len(facts["losses"]) == 1
    assert kept
    assert not (tmp_path / "expert").exists()


def read_metadata(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()["state"]


def test_time_that_is_up_stops_after_a_step_and_the_same_call_goes_on(place: dict[str, Any], tmp_path: Path):
    whole = fine_tune(**place, out=str(tmp_path / "whole"))[0]
    out = str(tmp_path / "parts")
    first = fine_tune(**place, out=out, max_minutes=1e-9)[0]
    assert (first.facts, first.steps, first.of) == (None, 1, STEPS)
    assert "1 of 12 steps" in line_of(first)
    assert files(fine_tune(**place, out=out)[0].folder) == files(whole.folder)


def test_finished_experts_are_not_made_again(place: dict[str, Any], tmp_path: Path):
    out = str(tmp_path / "expert")
    fine_tune(**place, out=out)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "expert").iterdir()}
    assert fine_tune(**place, out=out)[0].kept
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "expert").iterdir()} == before
    with pytest.raises(OutputError, match="holds another expert"):
        fine_tune(**place | {"lr": 2e-3}, out=out)
    assert not fine_tune(**place | {"lr": 2e-3}, out=out, overwrite=True)[0].kept


def test_a_state_of_another_training_is_refused(place: dict[str, Any], tmp_path: Path):
    out = str(tmp_path / "expert")
    fine_tune(**place, out=out, max_minutes=1e-9)
    with pytest.raises(OutputError, match=r"another fine-tuning \(recipe.lr is 0.001 there, 0.002 here\)"):
        fine_tune(**place | {"lr": 2e-3}, out=out)
    (tmp_path / "expert.state.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(OutputError, match="is no state of a fine-tuning, or damaged"):
        fine_tune(**place, out=out)


def test_memory_that_does_not_suffice_names_what_fits(
    place: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The tower refuses more than five images, as a device would."""
    forward = CLIPVisionModel.forward

    def small(self: CLIPVisionModel, *words: Any, **named: Any) -> Any:
        if len(named["pixel_values"]) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, *words, **named)

    monkeypatch.setattr(CLIPVisionModel, "forward", small)
    told = "out of memory on cpu with 32 images in a forward pass; micro_batch_size=4 fits"
    with pytest.raises(ModelError, match=told):
        fine_tune(**place, val_images=5, out=str(tmp_path / "expert"))
    fine_tune(**place, val_images=5, micro_batch_size=4, out=str(tmp_path / "expert"))


def test_what_is_held_out_is_not_trained_on(place: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: dict[str, set[int]] = {"train": set(), "val": set()}
    run = Training.run

    def watch(self: Training) -> Any:
        task = self.tasks[0]
        seen["train"] |= {row for step in range(STEPS) for row in self.batches.rows(0, step)}
        seen["val"] |= set(task.val)
        return run(self)

    monkeypatch.setattr(Training, "run", watch)
    task = write_task(tmp_path / "other", "hues", splits="train test", count=20)
    expert = fine_tune(**place | {"task": task}, hold_out=True, seed=3, out=str(tmp_path / "a"))[0]
    assert expert.facts
    assert expert.facts["tasks"][0]["held_out"] == 6 == len(seen["val"])
    assert not seen["train"] & seen["val"]
    assert len(seen["train"]) == 54
    val = open_split(read_task(Path(task)), "val")
    assert list(val.rows or ()) == sorted(seen["val"]), "the very images that evaluation takes for val"
    whole = fine_tune(**place | {"task": task}, out=str(tmp_path / "b"))[0]
    assert whole.facts
    assert whole.facts["val"] == {}


def test_a_limit_trains_on_a_seeded_choice(place: dict[str, Any], tmp_path: Path):
    expert = fine_tune(**place, limit=7, out=str(tmp_path / "a"))[0]
    assert expert.facts
    assert expert.facts["tasks"][0]["images"] == 7
    assert expert.facts["tasks"][0]["rows"] != "all"


@pytest.mark.parametrize("kind", ["lora", "l_lora"])
def test_an_adapter_is_the_expert_that_was_trained(kind: str, place: dict[str, Any], tmp_path: Path):
    held: list[Training] = []
    expert = None
    with pytest.MonkeyPatch.context() as patch:
        run = Training.run
        patch.setattr(Training, "run", lambda self: (held.append(self), run(self))[1])
        expert = fine_tune(**place | KINDS[kind], out=str(tmp_path / "expert"))[0]
    base = open_checkpoint(Path(place["base"]), "base")
    full = applied(base, open_checkpoint(expert.folder, "expert", base))
    convert(str(expert.folder), tmp_path / "full", "hf", base=place["base"])
    merged = CLIPVisionModel.from_pretrained(tmp_path / "full")
    tower = held[0].trained.tower.eval()
    pixels = torch.randn(9, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mine, theirs = tower(pixel_values=pixels).pooler_output, merged(pixel_values=pixels).pooler_output
        start = CLIPVisionModel.from_pretrained(place["base"])(pixel_values=pixels).pooler_output
    assert (mine - theirs).abs().max() <= 1e-6 * mine.abs().max()
    assert (mine - start).abs().max() > 1e-3
    assert set(full) == set(base)


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(
    place: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    gradients = Training.gradients

    def spoilt(self: Training, step: int, parts: Any) -> Any:
        loss = gradients(self, step, parts)
        if step == 3:
            next(iter(self.trained.parameters.values())).grad.fill_(float("nan"))  # type: ignore[union-attr]
        return loss

    monkeypatch.setattr(Training, "gradients", spoilt)
    with pytest.raises(ModelError, match="the norm of the gradient is nan at step 4 of 12 .*after step 3 is kept"):
        fine_tune(**place, save_minutes=0.0, out=str(tmp_path / "expert"))
    kept = load_file(tmp_path / "expert.state.safetensors")
    assert all(value.isfinite().all() for value in kept.values())


def test_weights_that_are_not_finite_are_not_an_expert(place: dict[str, Any], tmp_path: Path):
    with pytest.raises(ModelError, match="the loss on val is nan after step 1"):
        fine_tune(**place | {"optimizer": "sgd", "lr": 1e38, "steps": 1}, out=str(tmp_path / "expert"))
    assert not (tmp_path / "expert").exists()


def test_overwrite_goes_on_with_its_own_state(place: dict[str, Any], tmp_path: Path):
    out = str(tmp_path / "expert")
    fine_tune(**place | {"lr": 2e-3}, out=out)
    again = {"out": out, "overwrite": True, "max_minutes": 1e-9}
    assert [fine_tune(**place, **again)[0].steps for _ in range(3)] == [1, 2, 3]


def test_an_interruption_of_the_last_validation_is_one(
    place: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = fine_tune(**place, out=str(tmp_path / "whole"))[0]
    validate = Training.validate

    def interrupted(self: Training, step: int) -> None:
        if step == STEPS:
            signal.raise_signal(signal.SIGINT)
        validate(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "validate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fine_tune(**place, out=str(tmp_path / "parts"))
    assert files(fine_tune(**place, out=str(tmp_path / "parts"))[0].folder) == files(whole.folder)


def test_what_is_wrong_with_the_last_task_is_told_before_the_first_one_is_trained(
    place: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    other = write_task(tmp_path / "tasks", "hues", count=9)
    settings = place | {"task": [place["task"], other], "out": str(tmp_path / "experts")}
    del settings["steps"]
    monkeypatch.setattr(Training, "run", lambda self: pytest.fail("nothing is to be trained"))
    with pytest.raises(ConfigError, match="epochs: the recipe has none for hues"):
        fine_tune(**settings, epochs={"colours": 1.0})
    (tmp_path / "experts" / "hues").mkdir(parents=True)
    (tmp_path / "experts" / "hues" / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match="hues: is not empty"):
        fine_tune(**settings, epochs=1.0)
    with pytest.raises(ConfigError, match="rank"):
        fine_tune(**place, recipe="lora", rank=999, out=str(tmp_path / "a"))
    monkeypatch.setattr("clipfuse.run.finetune.find_workers", lambda device: Workers(0, 2))
    with pytest.raises(ConfigError, match="batch_size: is 1 for 2 processes"):
        fine_tune(**place, batch_size=1, out=str(tmp_path / "a"))


def test_the_base_is_never_overwritten(place: dict[str, Any], tmp_path: Path):
    convert(place["base"], tmp_path / "copy", "clip", base=place["base"])
    before = files(tmp_path / "copy")
    with pytest.raises(OutputError, match="holds the input"):
        fine_tune(**place | {"base": str(tmp_path / "copy")}, out=str(tmp_path / "copy"), overwrite=True)
    assert files(tmp_path / "copy") == before


def test_the_pools_file_grows_and_a_strangers_stays(place: dict[str, Any], tmp_path: Path):
    other = write_task(tmp_path / "tasks", "hues", count=9)
    out, once = tmp_path / "experts", place | {"steps": 1}
    third = write_task(tmp_path / "tasks", "shades", count=5)
    fine_tune(**once | {"task": [place["task"], other]}, out=str(out))
    fine_tune(**once | {"task": [third, other]}, out=str(out))
    names = [member["name"] for member in load_preset("modelpool", str(out / "modelpool.yaml"))["models"]]
    assert names == ["_pretrained_", "colours", "hues", "shades"]
    (out / "modelpool.yaml").write_text("mine: true\n")
    fine_tune(**once | {"task": [place["task"], other]}, out=str(out))
    assert (out / "modelpool.yaml").read_text() == "mine: true\n"


def test_the_folder_that_one_is_in(place: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ConfigError, match="out: is the folder that you are in"):
        fine_tune(**place | {"steps": 1}, out=".")


def test_nothing_to_train_on(place: dict[str, Any], tmp_path: Path):
    for picture in (tmp_path / "tasks/colours/train").rglob("*.png"):
        picture.write_bytes(b"no picture")
    with pytest.raises(TaskError, match="colours: no image of train is left to train on"):
        fine_tune(**place, unreadable="skip", out=str(tmp_path / "expert"))


def test_the_environment_does_not_scale_gradients(
    place: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = place | {"optimizer": "sgd", "steps": 2}
    first = fine_tune(**settings, out=str(tmp_path / "a"))[0]
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    assert files(fine_tune(**settings, out=str(tmp_path / "b"))[0].folder) == files(first.folder)
