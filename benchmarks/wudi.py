"""How much more than its matrix products `wudi` costs: the matrices of one ViT-B/32 layer, on one thread.

    python benchmarks/wudi.py                # 400 steps, three repeats: about ten minutes
    python benchmarks/wudi.py --steps 40     # quicker, and the Gram matrices weigh ten times as much

In each repeat, the rule on random task vectors, then as many bare products of the same shapes, shape by shape.
Seconds are the thread's own processor time, so that what else the machine does counts only for the caches it takes.
"""

import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from measure import machine, spread

from clipfuse.fusion.registry import METHODS
from clipfuse.fusion.wudi import wudi  # registers it
from clipfuse.pool import Leaf

LAYER = {"attention": (768, 768, 4), "fc1": (3072, 768, 1), "fc2": (768, 3072, 1)}
"""Name → rows, columns, how many of them a layer has."""
BASE_SPREAD, EXPERT_SPREAD = 0.02, 3e-4
"""Standard deviations of the base's weights and of the task vectors."""


def random_leaf(rows: int, columns: int, experts: int, seed: int) -> Leaf:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(rows, columns, generator=generator).mul_(BASE_SPREAD)
    stored = [base + torch.randn(base.shape, generator=generator).mul_(EXPERT_SPREAD) for _ in range(experts)]
    return Leaf("weight", tuple(map(str, range(experts))), base, tuple(stored))


def seconds(work: Callable[[], object]) -> float:
    began = time.thread_time()
    work()
    return time.thread_time() - began


def bare(rows: int, columns: int, steps: int) -> Callable[[], None]:
    """`steps` products of a (rows, columns) and a (columns, columns) matrix, into the same memory."""
    left, right, out = torch.randn(rows, columns), torch.randn(columns, columns), torch.empty(rows, columns)

    def products() -> None:
        for _ in range(steps):
            torch.mm(left, right, out=out)

    return products


def main(
    steps: Annotated[int, typer.Option(min=1, help="Steps of Adam, and products.")] = 400,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    experts: Annotated[int, typer.Option(min=1)] = 8,
) -> None:
    """Print seconds and ratios, median (minimum-maximum) over the repeats."""
    torch.set_num_threads(1)
    cfg = METHODS[wudi.__name__].config.model_validate({"steps": steps})
    leaves = {name: random_leaf(rows, columns, experts, 0) for name, (rows, columns, _) in LAYER.items()}
    for leaf in leaves.values():
        _ = leaf.deltas  # made once: reading is no part of the rule
    rule: dict[str, list[float]] = {name: [] for name in LAYER}
    products: dict[str, list[float]] = {name: [] for name in LAYER}
    bare(768, 768, 10)()  # warm-up
    for _ in range(repeats):
        for name, (rows, columns, _) in LAYER.items():
            rule[name].append(seconds(lambda name=name: wudi(leaves[name], cfg)))
            products[name].append(seconds(bare(rows, columns, steps)))

    for found in (rule, products):
        found["layer"] = [sum(found[n][k] * LAYER[n][2] for n in LAYER) for k in range(repeats)]
    print(f"{machine()}; {experts} experts, {steps} steps, {repeats} repeats, one thread's processor time")
    print("| matrix | wudi, s | its products alone, s | ratio |\n|---|---|---|---|")
    for name in rule:
        ratios = [a / b for a, b in zip(rule[name], products[name], strict=True)]
        print(f"| {name} | {spread(rule[name], 1)} | {spread(products[name], 1)} | {spread(ratios)} |")


if __name__ == "__main__":
    typer.run(main)
