"""`check`: everything about a run that can be known before weights are read."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipfuse.checkpoints.writer import check_output, check_space
from clipfuse.config import parse
from clipfuse.data import open_split
from clipfuse.fusion.chain import Chain
from clipfuse.fusion.engine import check_chain
from clipfuse.fusion.merge import as_dtype, look_at, merge_device
from clipfuse.pool import HuggingFaceClipVisionPool, PoolView
from clipfuse.pool.view import MEMORY, slices
from clipfuse.run.config import RunConfig
from clipfuse.run.lend import TaskLender, base_for
from clipfuse.run.pipeline import chains_of
from clipfuse.run.speed import measure_speed
from clipfuse.run.tasks import find_tasks, is_tiny
from clipfuse.tasks import TaskPoolConfig

LOOKED_AT = 1 / 40
"""Share of the task vectors that order statistics hold while they look at the whole pool first, in sizes of float32."""


@dataclass(frozen=True)
class Plan:
    """What a merge will do; bytes, and the data that its method sees."""

    method: str
    experts: tuple[str, ...]
    base: bool
    tensors: int
    parameters: int
    bytes_read: int
    """In all passes."""
    bytes_written: int
    passes: int
    """Times that the pool is read."""
    peak_memory: int
    """About what is held in anonymous memory while merging, bytes above that of torch itself."""
    work: float
    """FLOP of decompositions and the like, about; 0 where a method costs little more than reading."""
    seconds: float
    """About the time that merging takes on this machine, from a short measurement."""
    uses: tuple[str, ...]
    tasks: tuple[str, ...]
    warnings: tuple[str, ...]


def make_plan(tree: Mapping[str, Any]) -> Plan:
    """Check a run's tree (or a merge's: `taskpool` may be absent) without reading weights.

    Raises:
        ClipfuseError: one line for the first thing that is wrong.
    """
    config = parse(RunConfig, {"taskpool": {}, **tree}, "run")
    chains = chains_of(config)
    chain = chains[0]
    taskpool = parse(TaskPoolConfig, config.taskpool, "taskpool") if config.taskpool else None
    tasks = find_tasks(taskpool) if taskpool else []
    dtype = as_dtype(config.dtype)
    models = HuggingFaceClipVisionPool.from_tree(config.modelpool)
    pool = models.weights
    view = look_at(pool, memory=config.memory, device=merge_device(config.device))
    lender = None
    if taskpool and any(one.looks for one in chains):
        lender = TaskLender(tasks, base_for(models, taskpool), config)
    for one in chains:
        check_chain(one, view, lender)
    for task in tasks:
        if task.folder and not is_tiny(task):
            open_split(task, "test")
    if config.out:
        check_output(Path(config.out), config.overwrite, [f for c in pool.checkpoints for f in c.files])
    written = sum(spec.numel * (dtype or spec.dtype).itemsize for spec in pool.specs.values())
    if chain.method.rule.continual:  # what it goes on from, float32
        written += sum(4 * spec.numel for spec in pool.specs.values())
    check_space(Path(config.out or "."), written)
    read, work = chain.reads(pool) * chain.passes, chain.work((spec.shape for spec in pool.specs.values()), len(pool))
    speed = measure_speed(chain, view)
    return Plan(
        method=chain.title,
        experts=pool.tasks,
        base=pool.base is not None,
        tensors=len(pool.specs),
        parameters=sum(spec.numel for spec in pool.specs.values()),
        bytes_read=read,
        bytes_written=written,
        passes=chain.passes,
        peak_memory=peak_memory(chain, view),
        work=work,
        seconds=read / speed.bytes_per_second + (work / speed.flop_per_second if work else 0.0),
        uses=tuple(dict.fromkeys(use for one in chains for use in one.uses)),
        tasks=tuple(task.name for task in tasks),
        warnings=tuple(pool.warnings),
    )


def peak_memory(chain: Chain, view: PoolView) -> int:
    """Bytes: leaves that are worked on at once or what a look at the whole pool holds, and what a sweep keeps."""
    members = chain.at_once(len(view.tasks))
    size = sum(spec.numel for spec in view.specs.values())
    view = replace(view, appetite=chain.appetite(len(view.tasks)))
    needs = [
        view.need((stop or view.specs[name].numel) - start, chain.grain)
        for name, start, stop in slices(view.specs, chain.grain, view.slice)
    ]
    needs.sort(reverse=True)
    at_once = max(needs[0], min(sum(needs[: view.threads]), view.memory or MEMORY))
    looked_at = int(LOOKED_AT * 4 * size * members) if any(step.rule.passes for step in chain.steps) else 0
    parts = (1 if chain.swept == "scaling_factor" else 2) if chain.values else 0
    return max(at_once, looked_at) + 4 * size * (parts + bool(parts))
