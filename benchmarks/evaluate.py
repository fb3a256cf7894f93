"""Evaluation against what it cannot undercut: bare forward passes; and against FusionBench's task pool.

    python benchmarks/evaluate.py                       # B/32 geometry, random weights, made-up photographs
    python benchmarks/evaluate.py --peers               # and FusionBench, in an environment of its own

Everything is measured in one run, in rounds, by turns; a ratio is printed with its range over rounds. The allocator is
told what the command line tells it, for the bare loops too.
"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from make_images import make_task, tall20, write_tokenizer
from make_pool import Recipe, make_pool
from measure import machine, run_process, spread
from peers import PEERS
from torch import Tensor

from clipfuse.cache import cache_folder
from clipfuse.cli.allocator import keep_large_blocks
from clipfuse.data import ImageSet, blocks, make_ready, open_images, open_split, read_preprocess
from clipfuse.evaluate import Candidate, evaluate
from clipfuse.evaluate.forward import automatic_batch
from clipfuse.heads import Head, zero_shot_heads
from clipfuse.models.clip_base import ClipBase, open_base
from clipfuse.models.encoder import VisionEncoder
from clipfuse.pool import HuggingFaceClipVisionPool
from clipfuse.run.models import score_models
from clipfuse.tasks import read_task

BENCH, CPU = Path(".bench"), torch.device("cpu")


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def ready(images: ImageSet) -> Tensor:
    """A split's pixels, normalised: what a bare loop is given."""
    return torch.cat([images.preprocess.normalise(block.pixels) for block in blocks(images)])


@torch.no_grad()
def bare(vision: Any, pixels: Tensor, batch: int) -> None:
    for start in range(0, len(pixels), batch):
        vision(pixel_values=pixels[start : start + batch])


def one_model(encoder: VisionEncoder, images: ImageSet, heads: dict[str, Head], rounds: int) -> None:
    """Throughput of a loaded model from the cache ÷ that of a loop over ready tensors."""
    pixels, batch = ready(images), automatic_batch(CPU)
    candidate = Candidate("model", lambda: encoder, encoder.bytes)
    ratios, rates = [], []
    for _ in range(rounds):
        loop = timed(lambda: bare(encoder.vision, pixels, batch))
        ours = timed(lambda: evaluate([candidate], [images], heads))
        ratios.append(loop / ours)
        rates.append(len(pixels) / ours)
    print(f"one model: {spread(rates, 1)} img/s; {spread(ratios)} of a bare loop on ready tensors (wanted: >= 0.95)")


def batch_curve(encoder: VisionEncoder, images: ImageSet) -> None:
    """Images per second of a bare loop by batch size: what the automatic size goes by."""
    pixels = ready(images)
    found = {
        size: len(pixels) / timed(lambda size=size: bare(encoder.vision, pixels, size)) for size in (8, 16, 32, 64, 128)
    }
    print("img/s by batch: " + ", ".join(f"{size}: {rate:.1f}" for size, rate in found.items()))


def many_models(
    pool: HuggingFaceClipVisionPool, base: ClipBase, images: ImageSet, heads: dict[str, Head], rounds: int
) -> None:
    """All experts on one task, opened from disk, ÷ their forward passes alone."""
    pixels = ready(images)
    experts = list(pool.model_names)
    size = sum(spec.nbytes for spec in pool.weights.specs.values())
    ratios, seconds = [], []
    for _ in range(rounds):
        alone = 0.0
        for name in experts:
            vision = pool.load_model(name)
            alone += timed(lambda vision=vision: bare(vision, pixels, automatic_batch(CPU)))
        candidates = [Candidate(n, partial(open_expert, pool, base, n), size) for n in experts]
        ours = timed(partial(evaluate, candidates, [images], heads))
        ratios.append(ours / alone)
        seconds.append(ours)
    told = f"{len(experts)} models, {len(pixels)} images: {spread(seconds, 1)} s"
    print(f"{told}; {spread(ratios)} x their forward passes (wanted: <= 1.15)")


def open_expert(pool: HuggingFaceClipVisionPool, base: ClipBase, name: str) -> VisionEncoder:
    return VisionEncoder(pool.load_model(name), base)


@torch.no_grad()
def class_by_class(base: ClipBase) -> None:
    """What FusionBench does: a forward pass for each class, its prompts padded to one length."""
    model = base.text_model()
    for task in tall20():
        for row in task.prompts():
            ids = base.tokenizer(row, padding=True, return_tensors="pt")
            torch.nn.functional.normalize(model(**ids).text_embeds, dim=-1).mean(0)


def all_heads(base: ClipBase, rounds: int) -> None:
    """Heads of the twenty tasks: together, class by class, and from the cache."""
    tasks = tall20()
    prompts = len({prompt for task in tasks for row in task.prompts() for prompt in row})
    ratios, seconds, kept = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            slow = timed(lambda: class_by_class(base))
            seconds.append(timed(lambda: zero_shot_heads(base, tasks)))
            ratios.append(slow / seconds[-1])
        zero_shot_heads(base, tasks, Path(folder))
        for _ in range(5):
            kept.append(1000 * timed(lambda: zero_shot_heads(base, tasks, Path(folder))))
    print(f"heads of TALL20, {prompts:,} prompts: {spread(seconds, 1)} s")
    print(f"    from the cache {spread(kept, 0)} ms (wanted: < 50)")
    print(f"    class by class takes {spread(ratios)} x (wanted: >= 2)")


def second_run(pool: HuggingFaceClipVisionPool, base: str, task: Path) -> None:
    """A whole job with warm caches: the share of its time that is not spent in forward passes."""
    models = [pool.get_model_config(name).path for name in list(pool.model_names)[:2]]
    tree = {"taskpool": {"tasks": [str(task)]}, "base": base, "reuse": False}
    for number in ("first", "second"):
        began = time.perf_counter()
        records = score_models(models, tree).records
        spent = time.perf_counter() - began
        passes = sum(record.environment.seconds for record in records if record.environment)
        told = f"{number} run of two models, {records[0].n} images: {spent:.1f} s"
        print(f"{told}, {100 * (1 - passes / spent):.1f} % outside forward passes (wanted of the second: < 2)")


def beside_fusionbench(pool: HuggingFaceClipVisionPool, base: str, task: Path) -> None:
    """The same models on the same images in FusionBench's task pool; processes as users start them."""
    peer = next(peer for peer in PEERS if peer.name == "FusionBench")
    if failure := peer.install(BENCH):
        print(f"FusionBench: cannot be had ({failure})")
        return
    models = [pool.get_model_config(name).path for name in pool.model_names]
    script = Path(__file__).with_name("peer_taskpool.py")
    told = {"models": models, "base": base, "images": str(task.parent / "pictures/test")}
    theirs = run_process([str(peer.environment(BENCH) / "bin/python"), str(script), json.dumps(told)])
    found = json.loads(theirs.output.splitlines()[-1])
    with tempfile.TemporaryDirectory() as cache:
        words = ["evaluate", *models, f"base={base}", f"taskpool.tasks=[{task}]", "--json"]
        command, env = [sys.executable, "-m", "clipfuse", *words], {"CLIPFUSE_CACHE": cache}
        cold = run_process(command, env=env)
        shutil.rmtree(Path(cache) / "scores")
        warm = run_process(command, env=env)
        again = run_process(command, env=env)
    mine = [record["correct"] / record["n"] for record in json.loads(cold.output)]
    worst = max(abs(a - b) for a, b in zip(mine, found["accuracies"], strict=True))
    told = f"FusionBench, {len(models)} models one after the other: {theirs.seconds:.1f} s"
    print(f"{told}, evaluate {found['seconds']:.1f} s; accuracies differ by at most {100 * worst:.2f} points")
    for name, run in (("no cache yet", cold), ("images and heads cached", warm), ("scored before", again)):
        print(f"clipfuse evaluate, {name}: {run.seconds:.1f} s; FusionBench takes {theirs.seconds / run.seconds:.2f} x")


def main(
    images: Annotated[int, typer.Option(min=64, help="Images of the task.")] = 512,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    peers: Annotated[bool, typer.Option("--peers", help="Also measure FusionBench.")] = False,
) -> None:
    """Measure and print."""
    keep_large_blocks()
    print(machine())
    recipe = Recipe(with_clip=True)
    pool = HuggingFaceClipVisionPool.from_yaml(make_pool(BENCH / "b32-clip", recipe))
    base_folder = BENCH / "b32-clip/base"
    write_tokenizer(base_folder)
    base = open_base(str(base_folder.absolute()))
    task = read_task(make_task(BENCH / "photographs", images))
    split = open_split(task, "test", limit=images)
    cached = open_images(split, read_preprocess(base_folder))
    began = time.perf_counter()
    lacking = cached.lacking
    make_ready(cached)
    if lacking:
        print(f"decoding {lacking} photographs: {lacking / (time.perf_counter() - began):.0f} img/s")
    heads = zero_shot_heads(base, [task], cache_folder("heads"))
    encoder = open_expert(pool, base, pool.model_names[0])
    batch_curve(encoder, cached)
    one_model(encoder, cached, heads, rounds)
    del encoder
    all_heads(base, rounds)
    few = open_images(open_split(task, "test", limit=min(images, 192)), cached.preprocess)
    make_ready(few)
    many_models(pool, base, few, heads, max(1, rounds - 1))
    second_run(pool, base.ref, BENCH / "photographs/dtd.yaml")
    if peers:
        beside_fusionbench(pool, base.ref, BENCH / "photographs/dtd.yaml")


if __name__ == "__main__":
    typer.run(main)
