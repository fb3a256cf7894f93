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
from pathlib import Path
from typing import Annotated, Any

import typer
from datadriven_lender import large_blocks_kept, noise_lender
from datadriven_plain import Plain
from datadriven_rounds import BATCH, PEER, VAL, Bench, Figures, opened
from make_pool import Recipe, make_pool
from measure import Run, import_torch, load, machine, run_process
from peers import HERE, PEERS

from clipfuse.cli.allocator import give_back_large_blocks

BENCH = Path(".bench")
LARGE_IMAGES, LARGE_MEMORY = 8, 8.0
"""Images of the Fisher information of ViT-L/14, and the GB of memory that it is to stay below."""


def interpreter() -> Path | None:
    """Of FusionBench's environment, made if it is not there."""
    peer = next(peer for peer in PEERS if peer.name == PEER)
    if failure := peer.install(BENCH):
        print(f"{PEER} is left out: {failure}")
        return None
    return peer.environment(BENCH) / "bin/python"


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
    steps: Annotated[int, typer.Option(min=1, help="Of AdaMerging in a round, after a first one.")] = 2,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    peers: Annotated[bool, typer.Option("--peers", help="FusionBench (installs it once), and bfloat16.")] = False,
    layers: Annotated[int | None, typer.Option(min=1, help="Of both geometries, if not the real number.")] = None,
) -> None:
    """Measure and print."""
    give_back_large_blocks()
    print(machine())
    python = interpreter() if peers else None
    suffix = f"-{layers}" if layers else ""
    small, large = Recipe(layers=layers), Recipe("l14", layers=layers)
    pool, two, few = (make_pool(BENCH / f"b32{suffix}", small, count) for count in (8, 2, experts))
    one = make_pool(BENCH / f"l14{suffix}", large, 1)
    figures, peaks = Figures(), []
    bench = Bench(figures, pool, few, steps, images)
    with tempfile.TemporaryDirectory() as cache:  # where no state of an interrupted run lies
        os.environ["CLIPFUSE_CACHE"] = cache
        entropy_memory(two, pool)
        for _ in range(rounds):
            bench.entropy()
            bench.grams()
            bench.whole("regmean", {"name": "regmean", "images": images})
            large_fisher(figures, one, peaks)
            if peers:
                bench.halved()
                bench.beside_peer(python)
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
