"""Fine-tuning against a loop that one would write by hand, and the memory of the whole command.

    python benchmarks/finetune.py                       # B/32 geometry, random weights, made-up photographs, batch 32

Both loops make the same steps of Adam on the same batches, by turns in one process: the hand-written one on tensors
that are ready, ours with its order, image cache, validation, losses and states. A ratio is printed with its range over
rounds. The memory is that of `clipfuse finetune` as a process of its own.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
import yaml
from make_images import make_task, write_tokenizer
from make_pool import Recipe as Pool
from make_pool import make_pool
from measure import machine, run_process, spread
from torch.nn import functional

from clipfuse.cache import cache_folder
from clipfuse.cli.allocator import keep_large_blocks
from clipfuse.config.presets import load_preset
from clipfuse.data import make_ready, open_images, open_split, read_preprocess
from clipfuse.data.gather import Rows
from clipfuse.finetune.batches import TrainingTask
from clipfuse.finetune.recipe import Recipe
from clipfuse.finetune.runtime import make_accelerator
from clipfuse.finetune.state import StateFile
from clipfuse.finetune.train import Running, Training
from clipfuse.finetune.trained import make_trained
from clipfuse.heads import zero_shot_heads
from clipfuse.models.build import build_vision_model
from clipfuse.models.clip_base import ClipBase, open_base
from clipfuse.order import Order
from clipfuse.tasks import read_task

BENCH, CPU = Path(".bench"), torch.device("cpu")
LR = 1e-5
OTHERS = ("attention", "lora", "l_lora", "linearised")


def by_hand(
    base: ClipBase, task: TrainingTask, pixels: torch.Tensor, labels: torch.Tensor, steps: int, batch: int
) -> float:
    """Seconds of a minimal loop on normalised images that are ready, in the order of ours."""
    vision = build_vision_model(base.checkpoint, base.geometry).train()
    optimizer, order = torch.optim.Adam(vision.parameters(), LR, fused=True), Order(len(pixels), task.name, 0)
    batches = [order.take(batch * step, batch) for step in range(steps)]
    began = time.perf_counter()
    for rows in batches:
        pooled = vision(pixel_values=pixels[rows]).pooler_output
        features = functional.normalize(functional.linear(pooled, base.projection), dim=-1)
        loss = functional.cross_entropy(task.head.scale * features @ task.head.weights.T, labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return time.perf_counter() - began


def ours(base: ClipBase, task: TrainingTask, steps: int, recipe: Recipe, folder: Path) -> float:
    """Seconds of the same steps by clipfuse, model loaded."""
    trained = make_trained(base.checkpoint, base.geometry, recipe)
    accelerator = make_accelerator(CPU, recipe.precision)
    state = StateFile(folder / "expert.state.safetensors", {})
    training = Training(
        trained, [task], recipe, steps, Running(accelerator, task.rows.images.preprocess, base.projection, state)
    )
    began = time.perf_counter()
    training.run()
    return time.perf_counter() - began


def whole_command(task: Path, base: Path, steps: int, batch: int, settings: list[str]) -> None:
    """Peak memory of the command, and its time, model, heads and files included."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "expert"
        words = [f"task={task}", f"base={base}", f"steps={steps}", f"batch_size={batch}", *settings, "--out", str(out)]
        done = run_process([sys.executable, "-m", "clipfuse", "finetune", *words], watch=True)
        written = json.loads((out / "finetune.json").read_text())
        kinds = f"anonymous {(done.anonymous or 0) / 1e9:.2f} GB, resident {(done.resident or 0) / 1e9:.2f} GB"
        told = " ".join(settings) or "published recipe"
        print(
            f"clipfuse finetune, {steps} steps, {told}: {done.seconds:.1f} s, peak {kinds} (wanted: < 6 GB)", flush=True
        )
        assert written["steps"] == steps


def training_task(path: Path) -> Path:
    """A task file whose train split is the made-up photographs."""
    told = yaml.safe_load(path.read_text(encoding="utf-8")) | {"name": "photographs", "splits": {"train": "test"}}
    path = path.with_name("photographs.yaml")
    path.write_text(yaml.safe_dump(told, sort_keys=False), encoding="utf-8")
    return path


def main(
    images: Annotated[int, typer.Option(min=64, help="Images of the task.")] = 128,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a round.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; both loops in each.")] = 5,
    batch: Annotated[int, typer.Option(min=1, help="Images a step.")] = 32,
    kinds: Annotated[bool, typer.Option("--kinds", help="Other recipes' steps, too.")] = False,
) -> None:
    """Measure and print."""
    keep_large_blocks()
    print(machine())
    make_pool(BENCH / "b32-clip", Pool(with_clip=True))
    folder = BENCH / "b32-clip/base"
    write_tokenizer(folder)
    base, path = open_base(str(folder.absolute())), training_task(make_task(BENCH / "photographs", images))
    opened = read_task(path)
    cached = open_images(open_split(opened, "train"), read_preprocess(folder))
    make_ready(cached)
    heads = zero_shot_heads(base, [opened], cache_folder("heads"))
    task = TrainingTask(opened.name, heads[opened.name], Rows(cached), range(len(cached.split)))
    pixels = cached.preprocess.normalise(task.rows.pixels(range(len(cached.split))))
    recipe = Recipe.model_validate({"steps": steps, "lr": LR, "batch_size": batch})
    with tempfile.TemporaryDirectory() as scratch:
        ratios, rates = [], []
        for _ in range(rounds):
            hand = by_hand(base, task, pixels, task.rows.labels, steps, batch)
            mine = ours(base, task, steps, recipe, Path(scratch))
            ratios.append(hand / mine)
            rates.append(steps / mine)
        told = f"{spread(rates)} steps/s, {spread(ratios)} of a minimal loop on ready tensors (wanted: >= 0.95)"
        print(f"B/32, batch {batch}, float32: {told}", flush=True)
        for name in OTHERS if kinds else ():
            settings = {**load_preset("recipe", name), "steps": steps, "batch_size": batch}
            mine = ours(base, task, steps, Recipe.model_validate(settings), Path(scratch))
            print(f"{name}: a step takes {mine * statistics.median(rates) / steps:.2f} x that of the published recipe")
    whole_command(path, folder, 20, batch, [])
    for settings in (["recipe=linearised"], ["micro_batch_size=8"]) if kinds else ():
        whole_command(path, folder, 20, batch, settings)


if __name__ == "__main__":
    typer.run(main)
