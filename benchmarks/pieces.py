"""Where the time of a one-pass element-wise merge goes: bare calls over the same slices, one piece more at a time.

    python benchmarks/pieces.py

Task arithmetic of the pool, on as many threads as there are cores. "floor" reads and writes every byte once and does
nothing with them. The pieces are loops of a few lines over the engine's slices, with no leaves, rules or progress; the
last row is the engine. Each round runs all of them, so that what else the machine does falls on all.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from make_pool import make_pool
from measure import cores, floor, machine, spread
from torch import Tensor

from clipfuse.checkpoints.writer import SafetensorsWriter
from clipfuse.fusion.chain import configure
from clipfuse.fusion.engine import prepare, run
from clipfuse.fusion.merge import look_at, open_pool
from clipfuse.pool import ModelPool
from clipfuse.pool.room import Room
from clipfuse.pool.view import SLICE, slices

FACTOR = 0.3
PIECES = ("read", "+ τ and their sum", "+ looking for NaN and Inf", "+ θ0 + λΔ, written")


def bare(pool: ModelPool, threads: int, pieces: int, writer: SafetensorsWriter) -> None:
    """The first `pieces` of PIECES, slice by slice; float32 pools with a base."""
    local = threading.local()

    def work(name: str, start: int, stop: int) -> None:
        if not hasattr(local, "room"):
            local.room = Room(pool.checkpoints, len(pool), SLICE, "cpu")
        room: Room = local.room
        base, *experts = (room.read(number, name, start, stop - start) for number in range(len(pool) + 1))
        if pieces == 1:
            return
        beside = room.together([expert for expert in experts if expert is not None])
        if base is None or beside is None:
            raise ValueError(f"{name}: takes float32 files with a base")
        deltas = torch.sub(beside, base, out=room.deltas[:, : stop - start])
        merged = deltas.sum(0)
        if pieces == 2:
            return
        finite(deltas)
        if pieces == 3:
            return
        final = torch.add(base, merged, alpha=FACTOR, out=merged)
        finite(final)
        writer.write(name, final, start)

    torch.set_num_threads(1)
    places = [(name, start, stop) for name, start, stop in slices(pool.specs, "element") if stop]
    with ThreadPoolExecutor(threads) as executor:
        for done in [executor.submit(work, *place) for place in places]:
            done.result()
    torch.set_num_threads(threads)


def finite(values: Tensor) -> None:
    """Raises ValueError unless the sum, and so every value, is finite."""
    if not torch.isfinite(values.sum()):
        raise ValueError("not finite")


def engine(pool: ModelPool, writer: SafetensorsWriter) -> None:
    """The same merge by clipfuse."""
    prepared = prepare(configure({"name": "task_arithmetic", "scaling_factor": FACTOR}), look_at(pool))
    run(prepared, writer, prepared.result_specs())


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main(
    pool: Annotated[Path | None, typer.Option(help="YAML of a pool in float32, with a base.")] = None,
    runs: Annotated[int, typer.Option(min=1)] = 5,
) -> None:
    """Print seconds, and ratios to the floor of the same round, median (minimum-maximum)."""
    opened = open_pool(pool or make_pool(Path(".bench") / "b32"))
    files = [file for checkpoint in opened.checkpoints for file in checkpoint.files]
    size = sum(spec.nbytes for spec in opened.specs.values())
    taken: dict[str, list[float]] = {name: [] for name in ("floor", *PIECES, "clipfuse")}
    with TemporaryDirectory(dir=".bench") as scratch:
        for _ in range(runs + 1):
            taken["floor"].append(sum(floor(files, Path(scratch), size, cores())))
            with SafetensorsWriter(Path(scratch) / "merged.safetensors", opened.specs) as writer:
                for number, name in enumerate(PIECES, 1):
                    taken[name].append(seconds(lambda number=number: bare(opened, cores(), number, writer)))
            with SafetensorsWriter(Path(scratch) / "merged.safetensors", opened.specs) as writer:
                taken["clipfuse"].append(seconds(lambda writer=writer: engine(opened, writer)))
    print(f"{machine()}; {len(opened)} experts, {runs} runs\n\n| up to | seconds | × floor |\n|---|---|---|")
    for name, found in taken.items():
        ratios = [a / b for a, b in zip(found[1:], taken["floor"][1:], strict=True)]
        print(f"| {name} | {spread(found[1:])} | {spread(ratios)} |")


if __name__ == "__main__":
    typer.run(main)
