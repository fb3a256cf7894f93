"""How fast this machine does a merge, measured in a fraction of a second on numbers made up for it."""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clipfuse.errors import ClipfuseError
from clipfuse.fusion.chain import Chain, configure
from clipfuse.fusion.merge import merge
from clipfuse.pool import PRETRAINED, PoolView, pool_from_memory
from clipfuse.pool.view import one_torch_thread

BYTES = 16 << 20
"""Size of the made-up pool."""
NAME = "encoder.layers.0.mlp.fc1.weight"
"""Its only parameter."""
ENOUGH = 0.1
"""Seconds after which nothing is timed again."""
SIDE = 384
"""Side of the matrices that are multiplied and decomposed."""
FLOP_OF_SVD = 13
"""FLOP of a singular value decomposition, in units of n³, as rules count them."""


@dataclass(frozen=True)
class Speed:
    """Bytes a second that passes over a pool take, and FLOP a second of costly rules, all threads together."""

    bytes_per_second: float
    flop_per_second: float


def measure_speed(chain: Chain, view: PoolView) -> Speed:
    """Time a chain on a small pool like that of `view`, whose numbers are made up, and products and decompositions.

    The passes of a chain whose rules know their work are taken for those of task arithmetic, the rest for that work.
    """
    costly = any(step.rule.work for step in chain.steps)
    plain = configure("task_arithmetic")
    rates = []
    with suppress(ClipfuseError):  # settings may speak of parameters that are not there
        rates.append(byte_rate(plain if costly else replace(chain, values=()), view))
    return Speed(rates[0] if rates else byte_rate(plain, view), flop_rate(view.threads) if costly else 0.0)


def byte_rate(chain: Chain, view: PoolView) -> float:
    """Bytes a second of all passes of a chain, from models in a mapped file that is in the system's cache."""
    columns = view.specs[NAME].shape[1] if NAME in view.specs else 64
    rows = max(1, BYTES // 4 // columns // (len(view.tasks) + 1))
    shape = (len(view.tasks) + 1, rows, columns)
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(4 * shape[0] * rows * columns)
        stored = torch.from_file(file.name, shared=True, size=shape[0] * rows * columns).view(shape)
        made = [made_up(shape[1:], number) for number in range(2)]
        for number, model in enumerate(stored):
            torch.add(made[0], made[1].roll(number, 0), alpha=0.01 * (number > 0), out=model)
        pool = pool_from_memory({name: {NAME: m} for name, m in zip((PRETRAINED, *view.tasks), stored, strict=True)})
        seconds = fastest(lambda: merge(pool, chain, threads=view.threads))
    return chain.reads(pool) * chain.passes / seconds


def made_up(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def flop_rate(threads: int) -> float:
    """FLOP a second between that of products and that of decompositions: rules are made of both."""
    matrix, products = made_up((SIDE, SIDE), 0), FLOP_OF_SVD // 2
    kinds: tuple[tuple[Callable[[], object], float], ...] = (
        (lambda: [matrix @ matrix for _ in range(products)], 2.0 * products * SIDE**3),
        (lambda: torch.linalg.svd(matrix), float(FLOP_OF_SVD * SIDE**3)),
    )
    rate = 1.0
    with one_torch_thread(), ThreadPoolExecutor(threads) as pool:
        for work, flop in kinds:
            rate *= threads * flop / fastest(lambda work=work: list(pool.map(lambda _: work(), range(threads))))
    return rate**0.5


def fastest(work: Callable[[], object]) -> float:
    """Seconds of the faster of two calls; the first may load libraries."""
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
        if seconds[-1] > ENOUGH:
            break
    return min(seconds)
