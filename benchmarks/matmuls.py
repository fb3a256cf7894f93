"""Seconds that the matrix products of `wudi` take alone: T Gram matrices, then Δ times a square matrix at each step.

    python benchmarks/matmuls.py .bench/b32/pool.yaml --steps 400 --measured 4

As in the engine: a torch thread for each core, large matrices first. A few steps are measured and multiplied.
"""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import torch
import typer
import yaml
from measure import cores
from safetensors import safe_open


def shapes(pool: Path) -> tuple[list[tuple[int, int]], int]:
    """Shapes of the vision tower's 2-D weights, largest first, and the number of experts."""
    models = yaml.safe_load(pool.read_text(encoding="utf-8"))["models"]
    with safe_open(Path(models[0]["path"]) / "model.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith("vision_model.")]  # noqa: SIM118
        found = [tuple(file.get_slice(name).get_shape()) for name in names]
    return sorted((shape for shape in found if len(shape) == 2), key=lambda s: -s[0] * s[1] ** 2), len(models) - 1


def timed(work: Callable[[int, int], None], matrices: Sequence[tuple[int, int]]) -> float:
    began = time.perf_counter()
    with ThreadPoolExecutor(cores()) as pool:
        for done in [pool.submit(work, *shape) for shape in matrices]:
            done.result()
    return time.perf_counter() - began


def seconds(pool: Path, steps: int, measured: int) -> float:
    """Of all matrices of a pool."""
    matrices, experts = shapes(pool)
    torch.set_num_threads(1)

    def products(rows: int, columns: int) -> None:
        left, right, out = torch.randn(rows, columns), torch.randn(columns, columns), torch.empty(rows, columns)
        for _ in range(measured):
            torch.mm(left, right, out=out)

    def grams(rows: int, columns: int) -> None:
        delta, out = torch.randn(rows, columns), torch.empty(columns, columns)
        for _ in range(experts):
            torch.mm(delta.T, delta, out=out)

    timed(products, matrices[:2])
    return timed(grams, matrices) + timed(products, matrices) * steps / measured


def main(
    pool: Path,
    steps: Annotated[int, typer.Option(min=1)] = 400,
    measured: Annotated[int, typer.Option(min=1)] = 4,
) -> None:
    """Print the seconds as JSON."""
    print(json.dumps({"seconds": seconds(pool, steps, measured)}))


if __name__ == "__main__":
    typer.run(main)
