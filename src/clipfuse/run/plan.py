"""`check`: everything about a run that can be known before weights are read."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipfuse.checkpoints.writer import check_output, check_space
from clipfuse.config import parse
from clipfuse.cores import available_cores
from clipfuse.data import open_split
from clipfuse.fusion.chain import Chain
from clipfuse.fusion.engine import check_chain
from clipfuse.fusion.merge import as_dtype, look_at
from clipfuse.pool import HuggingFaceClipVisionPool
from clipfuse.pool.view import SLICE, slices
from clipfuse.run.bench import find_tasks, is_tiny
from clipfuse.run.config import RunConfig
from clipfuse.run.pipeline import chain_of
from clipfuse.tasks import TaskPoolConfig

TEMPORARIES = 4
"""Slices of the pool's size that a thread holds at a time: the task vectors and what rules make of them."""


@dataclass(frozen=True)
class Plan:
    """What a merge will do; bytes, and the data that its method sees."""

    method: str
    experts: tuple[str, ...]
    base: bool
    tensors: int
    parameters: int
    bytes_read: int
    bytes_written: int
    passes: int
    peak_memory: int
    """Estimate of anonymous memory, bytes above that of torch itself."""
    uses: tuple[str, ...]
    tasks: tuple[str, ...]
    warnings: tuple[str, ...]


def make_plan(tree: Mapping[str, Any]) -> Plan:
    """Check a run's tree (or a merge's: `taskpool` may be absent) without reading weights.

    Raises:
        ClipfuseError: one line for the first thing that is wrong.
    """
    config = parse(RunConfig, {"taskpool": {}, **tree}, "run")
    chain = chain_of(config)
    tasks = find_tasks(parse(TaskPoolConfig, config.taskpool, "taskpool")) if config.taskpool else []
    dtype = as_dtype(config.dtype)
    pool = HuggingFaceClipVisionPool.from_tree(config.modelpool).weights
    check_chain(chain, look_at(pool, memory=config.memory))
    for task in tasks:
        if task.folder and not is_tiny(task):
            open_split(task, "test")
    if config.out:
        check_output(Path(config.out), config.overwrite, [f for c in pool.checkpoints for f in c.files])
    written = sum(spec.numel * (dtype or spec.dtype).itemsize for spec in pool.specs.values())
    if chain.method.rule.continual:  # what it goes on from, float32
        written += sum(4 * spec.numel for spec in pool.specs.values())
    check_space(Path(config.out or "."), written)
    return Plan(
        method=chain.title,
        experts=pool.tasks,
        base=pool.base is not None,
        tensors=len(pool.specs),
        parameters=sum(spec.numel for spec in pool.specs.values()),
        bytes_read=pool.nbytes * chain.passes,
        bytes_written=written,
        passes=chain.passes,
        peak_memory=peak_memory(chain, pool.specs, 2 if chain.method.rule.continual else len(pool)),
        uses=chain.uses,
        tasks=tuple(task.name for task in tasks),
        warnings=tuple(pool.warnings),
    )


def peak_memory(chain: Chain, specs: Mapping[str, Any], experts: int) -> int:
    """Bytes: temporaries of the largest leaves that are worked on at once, and what `prepare` keeps."""
    if chain.grain == "element":
        largest = 4 * SLICE
    else:
        largest = max(4 * specs[name].numel for name, _, _ in slices(dict(specs), chain.grain))
    kept = (8 << 20) * experts * (chain.passes > 1)
    return available_cores() * TEMPORARIES * (experts + 1) * largest + kept
