"""Methods that look at data beside the passes that they cannot do without, and beside FusionBench.

    python benchmarks/datadriven.py                             # ViT-B/32 and ViT-L/14 geometry, random weights
    python benchmarks/datadriven.py --experts 8 --images 256    # RegMean as its figures are made
    python benchmarks/datadriven.py --peers                     # FusionBench, and bfloat16, in the same run
    python benchmarks/datadriven.py --layers 2 --rounds 1       # a quick look at whether all of it runs

On the CPU, images are noise. AdaMerging's steps and bare ones take turns within one merge; the rest takes turns within
a round. A ratio is formed within a round (of steps, within a pair), and printed as median and range. Memory is that of
merges as processes of their own.
"""

import json
import os
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from cases import OFFLINE
from datadriven_lender import large_blocks_kept, noise_lender
from datadriven_plain import Grams, Plain
from make_pool import Recipe, make_pool
from measure import Run, import_torch, load, machine, run_process, spread
from peers import HERE, PEERS

from clipfuse.cli.allocator import give_back_large_blocks
from clipfuse.fusion.merge import merge
from clipfuse.pool import HuggingFaceClipVisionPool

BENCH = Path(".bench")
BATCH, VAL = 16, 64
"""Images of a task in a step of AdaMerging, and of its split."""
GRAM_BATCH = 32
"""Images in a bare pass before Gram matrices: as many as ours and FusionBench's take."""
LARGE_IMAGES, LARGE_MEMORY = 8, 8.0
"""Images of the Fisher information of ViT-L/14, and the GB of memory that it is to stay below."""
WANTED = {"adamerging, a step": "<= 1.15", "regmean": "<= 1.25"}
PEER = "FusionBench"


@dataclass
class Figures:
    """Seconds by what was measured; those of one place are of one round, or of one pair of steps."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    rows: list[tuple[str, str]] = field(default_factory=list)

    def compare(self, what: str, over: str) -> None:
        """Ask for a row `what` ÷ `over`."""
        if (what, over) not in self.rows:
            self.rows.append((what, over))

    def table(self) -> str:
        """Markdown."""
        lines = ["| measured | seconds | ÷ | seconds | ratio | wanted |", "|---|---:|---|---:|---:|---|"]
        for what, over in self.rows:
            a, b = self.seconds[what], self.seconds[over]
            ratios = spread([x / y for x, y in zip(a, b, strict=True)])
            lines.append(f"| {what} | {spread(a)} | {over} | {spread(b)} | {ratios} | {WANTED.get(what, '-')} |")
        return "\n".join(lines)


@dataclass(frozen=True)
class Bench:
    """ViT-B/32 experts, and what is asked of them."""

    figures: Figures
    pool: Path
    """Of eight experts."""
    few: Path
    """Of as many as the methods with statistics are given."""
    steps: int
    images: int

    def lender(self, images: int, precision: str = "float32") -> Any:
        return noise_lender(opened(self.pool).weights.geometry, images, precision)  # type: ignore[arg-type]

    def entropy(self, precision: str = "float32", bare: bool = True) -> None:
        """AdaMerging's steps, each followed by a bare one on the same batches; the first pair is left out."""
        name = named("adamerging, a step", precision)
        pool, plain = opened(self.pool), []
        with self.lender(VAL, precision) as lender:
            fixed = Plain(pool.load_model(pool.model_names[0]), lender.lend(pool.model_names, ("val_images",)))
            if bare:
                lender.clock.between = lambda step: plain.append(fixed.entropy_step(fixed.batches(step, BATCH)))
            merge(pool, {"name": "adamerging", "steps": self.steps + 1, "batch": BATCH}, data=lender)
        self.figures.seconds[name] += lender.clock.seconds[1:]
        if bare:
            self.figures.seconds["its passes"] += plain[1:]
            self.figures.compare(name, "its passes")

    def grams(self) -> None:
        """Bare forward passes of every expert's images, and their Gram matrices; models are loaded already."""
        pool, spent, grams = opened(self.few), 0.0, None
        with self.lender(self.images) as lender, large_blocks_kept():
            lent = lender.lend(pool.model_names, ("train_images",))
            for task in pool.model_names:
                tower, images = pool.load_model(task), lent.images(task, "train")
                grams = grams or Grams(tower)
                spent += grams.passes(tower, images.pixels(images.choice(self.images)).split(GRAM_BATCH))
        self.figures.seconds["its passes and Gram matrices"].append(spent)
        self.figures.compare("regmean", "its passes and Gram matrices")

    def whole(self, name: str, method: dict[str, Any], precision: str = "float32") -> None:
        """A whole merge in memory, files in the page cache."""
        with self.lender(self.images, precision) as lender:
            began = time.perf_counter()
            merge(opened(self.few), method, data=lender)
            self.figures.seconds[named(name, precision)].append(time.perf_counter() - began)

    def peer(self, python: Path, method: str, ours: list[str]) -> None:
        """FusionBench's, as a process of its own; compared with each of `ours`."""
        stepwise = method == "adamerging"
        pool = yaml.safe_load((self.pool if stepwise else self.few).read_text(encoding="utf-8"))
        job = {"method": method, "models": {model["name"]: model["path"] for model in pool["models"]}}
        job |= {"images": VAL if stepwise else self.images, "steps": self.steps, "batch": BATCH}
        done = run_process([str(python), str(HERE / "peer_datadriven.py"), json.dumps(job)], env=OFFLINE)
        told, name = json.loads(done.output.splitlines()[-1]), f"{PEER} {method}{', a step' * stepwise}"
        self.figures.seconds[name] += told["steps"] if stepwise else [told["seconds"]]
        for other in ours:
            self.figures.compare(name, other)

    def beside_peers(self, python: Path) -> None:
        """FusionBench's three methods, and ours in bfloat16."""
        step, half = "adamerging, a step", "bfloat16"
        self.entropy(half, bare=False)
        self.whole("regmean", {"name": "regmean", "images": self.images}, half)
        fisher = {"name": "fisher_merging", "images": self.images}
        for precision in ("float32", half):
            self.whole("fisher_merging, sampled", fisher, precision)
        self.whole("fisher_merging, batch_sum", fisher | {"estimator": "batch_sum"})
        for name in (step, "regmean", "fisher_merging, sampled"):
            self.figures.compare(named(name, half), name)
        self.peer(python, "adamerging", [step, named(step, half)])
        self.peer(python, "regmean", ["regmean", named("regmean", half)])
        sampled = "fisher_merging, sampled"
        self.peer(python, "fisher_merging", [sampled, named(sampled, half), "fisher_merging, batch_sum"])


def named(what: str, precision: str) -> str:
    return what if precision == "float32" else f"{what}, {precision}"


def opened(pool: Path) -> HuggingFaceClipVisionPool:
    return HuggingFaceClipVisionPool.from_yaml(pool)


def alone(pool: Path, method: dict[str, Any], images: int) -> tuple[float, Run]:
    """A merge as a process of its own: seconds without imports, and what was seen of its memory."""
    job = {"pool": str(pool), "method": method, "images": images}
    done = run_process([sys.executable, str(HERE / "datadriven_merge.py"), json.dumps(job)], watch=True)
    return json.loads(done.output.splitlines()[-1])["seconds"], done


def entropy_memory(two: Path, eight: Path) -> None:
    """Peaks of AdaMerging with two and with eight experts: task vectors that were held would show."""
    bare, found = import_torch(watch=True).anonymous, {}
    method = {"name": "adamerging", "steps": 2, "batch": BATCH}
    for count, pool in ((2, two), (8, eight)):
        found[count] = alone(pool, method, VAL)[1].anonymous
    if bare is None:
        print("memory: cannot be seen here, there is no /proc")
        return
    above = {count: (peak - bare) / 1e6 for count, peak in found.items()}
    vectors = 6 * sum(spec.nbytes for spec in opened(eight).weights.specs.values()) / 1e6
    peaks = ", ".join(f"{count} experts {peak:,.0f} MB" for count, peak in above.items())
    print(f"adamerging, peak anonymous memory above `import torch` ({bare / 1e6:,.0f} MB): {peaks};")
    print(f"    {above[8] - above[2]:+,.0f} MB for six more, whose task vectors have {vectors:,.0f} MB", flush=True)


def large_fisher(figures: Figures, pool: Path, peaks: list[Run]) -> None:
    """Fisher of one ViT-L/14 as a process of its own, beside bare passes of its batches."""
    what, over = f"fisher_merging, ViT-L/14, {LARGE_IMAGES} images", "forward and backward passes of its batches"
    models = opened(pool)
    task, geometry = models.model_names[0], models.weights.geometry
    assert geometry is not None
    with noise_lender(geometry, LARGE_IMAGES) as lender, large_blocks_kept():
        fixed = Plain(models.load_model(task), lender.lend([task], ("train_images",)))
        figures.seconds[over].append(fixed.labelled_passes(task, LARGE_IMAGES))
        del fixed
    seconds, run = alone(pool, {"name": "fisher_merging", "images": LARGE_IMAGES}, LARGE_IMAGES)
    figures.seconds[what].append(seconds)
    figures.compare(what, over)
    peaks.append(run)


def main(
    experts: Annotated[int, typer.Option(min=2, max=8, help="Of RegMean and, with --peers, Fisher merging.")] = 2,
    images: Annotated[int, typer.Option(min=8, help="Of each of these experts.")] = 128,
    steps: Annotated[int, typer.Option(min=1, help="Of AdaMerging in a round, after a first one.")] = 3,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    peers: Annotated[bool, typer.Option("--peers", help="FusionBench (installs it once), and bfloat16.")] = False,
    layers: Annotated[int | None, typer.Option(min=1, help="Of both geometries, if not the real number.")] = None,
) -> None:
    """Measure and print."""
    give_back_large_blocks()
    print(machine())
    python = None
    if peers:
        peer = next(peer for peer in PEERS if peer.name == PEER)
        python = peer.environment(BENCH) / "bin/python"
        if failure := peer.install(BENCH):
            print(f"{PEER} is left out: {failure}")
            python = None
    suffix = f"-{layers}" if layers else ""
    small, large = Recipe(layers=layers), Recipe("l14", layers=layers)
    pool, two, few = (make_pool(BENCH / f"b32{suffix}", small, count) for count in (8, 2, experts))
    one = make_pool(BENCH / f"l14{suffix}", large, 1)
    figures, peaks = Figures(), []
    bench = Bench(figures, pool, few, steps, images)
    entropy_memory(two, pool)
    with tempfile.TemporaryDirectory() as cache:  # where no state of an interrupted run lies
        os.environ["CLIPFUSE_CACHE"] = cache
        for _ in range(rounds):
            bench.entropy()
            bench.grams()
            bench.whole("regmean", {"name": "regmean", "images": images})
            large_fisher(figures, one, peaks)
            if python:
                bench.beside_peers(python)
    if all(run.anonymous for run in peaks):
        anonymous, resident = (max(getattr(run, what) for run in peaks) / 1e9 for what in ("anonymous", "resident"))
        told = f"peak anonymous {anonymous:.2f} GB (wanted: < {LARGE_MEMORY:.0f}), all resident {resident:.2f} GB"
        print(f"fisher_merging, one expert of ViT-L/14, {LARGE_IMAGES} images: {told}")
    sizes = f"8 experts x {BATCH} images a step; other methods of ViT-B/32: {experts} experts x {images} images"
    print(f"adamerging: {sizes}")
    print(f"median (range) of {rounds} rounds, of {rounds} x {steps} steps; load {load()} at the end\n")
    print(figures.table())


if __name__ == "__main__":
    typer.run(main)
