"""`merge`: a pool and a method in, a `Merged` out."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipfuse.checkpoints.checkpoint import open_checkpoint
from clipfuse.checkpoints.names import hub_name
from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.checkpoints.writer import SafetensorsWriter, check_output, new_folder
from clipfuse.cores import available_cores
from clipfuse.errors import CheckpointError, ConfigError, ModelError, PoolError
from clipfuse.fusion.after import learn_after, tasks_of_experts
from clipfuse.fusion.chain import Chain, configure
from clipfuse.fusion.engine import add_up, prepare, run
from clipfuse.fusion.lent import Lender
from clipfuse.fusion.merged import (
    NO_GEOMETRY,
    SCHEMA,
    Merged,
    hub_writer,
    load,
    read_recipe,
    write_description,
    write_state,
)
from clipfuse.fusion.prepared import Prepared
from clipfuse.fusion.sinks import Sink, TensorSink
from clipfuse.fusion.task_tensors import write_task_tensors
from clipfuse.pool import HuggingFaceClipVisionPool, ModelPool, PoolView, pool_from_memory
from clipfuse.pool.task_vector import TaskVector
from clipfuse.pool.view import Progress
from clipfuse.sizes import as_bytes
from clipfuse.version import __version__

Models = str | Path | HuggingFaceClipVisionPool | ModelPool | Mapping[str, nn.Module | Mapping[str, Any] | TaskVector]
RuleTree = str | Mapping[str, Any]
log = logging.getLogger(__name__)
MERGING = ("cpu", "cuda")
"""Types of devices that have the float64 which rules need."""
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


def merge(
    models: Models,
    method: RuleTree | Chain,
    *,
    edits: Sequence[RuleTree] = (),
    finishes: Sequence[RuleTree] = (),
    after: RuleTree | None = None,
    seed: int = 0,
    dtype: torch.dtype | str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    memory: int | str | None = None,
    device: str = "cpu",
    data: Lender | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Merged:
    """Merge the experts of a pool into one vision encoder.

    Args:
        models: A pool, a preset's name or YAML file, or modules or state dicts by name, as in
            `{"_pretrained_": m0, "a": m1}`; never changed.
        method: A method's name, with its settings as further keywords, or a mapping with `name` and settings.
        edits: What is done to each task vector first, names or mappings.
        finishes: What is done to the merged task vector last.
        after: What is learned for each task on the merged encoder; inference must then know the task.
        seed: For random edits.
        dtype: Of the result; the base's (or first expert's) by default.
        out: Stream into this folder instead of memory; it appears whole or not at all.
        threads: Defaults to the cores of this process. The bits of the result do not depend on it.
        memory: Most bytes that leaves in work may take, a number or as in "2GB"; it does not change bits either.
        device: Where leaves are worked on: cpu, cuda, cuda:1.
        data: Where a method that looks at images gets them, from `clipfuse.open_data`.
        progress: Called with the number of bytes read since the last call.

    Raises:
        ConfigError, PoolError, CheckpointError, OutputError: before weights are read where that can be known.
    """
    chain = chain_of(method, settings, edits, finishes, seed, after)
    if chain.values:
        raise ConfigError(
            f"method.{chain.swept}: a list of values is for a run with select=val, or for `sweep`; a merge takes one"
        )
    view = look_at(open_pool(models, out, overwrite), threads, memory, device, progress)
    prepared = prepare(chain, view, lender=data)
    specs = prepared.result_specs(as_dtype(dtype))
    return finished(prepared, specs, out, overwrite, lambda sink: run(prepared, sink, specs))


def finished(
    prepared: Prepared,
    specs: Mapping[str, TensorSpec],
    out: str | Path | None,
    overwrite: bool,
    fill: Callable[[Sink], Mapping[str, int]],
) -> Merged:
    """What `fill` writes into a sink, with its recipe: in memory, or in the folder `out`."""
    tasks_of_experts(prepared)
    geometry = prepared.pool.geometry
    if out is None:
        sink = TensorSink.empty(specs)
        measured = fill(sink)
        learned = learn_after(prepared, sink.tensors)
        recipe = make_recipe(prepared, specs, measured)
        prepared.kept.clear()
        kind = recipe["kind"]
        return Merged(sink.tensors, recipe, geometry, kind, prepared.arrived, prepared.files, learned)
    if geometry is None:
        raise ModelError(NO_GEOMETRY)
    began = time.perf_counter()
    with new_folder(Path(out), overwrite) as folder:
        with hub_writer(folder, specs) as writer:
            measured = fill(HubSink(writer))
        if prepared.arrived:
            write_state(folder, prepared.arrived)
        learned = {}
        if prepared.chain.after:
            learned = learn_after(prepared, open_checkpoint(folder, str(out)).with_projection())
        recipe = make_recipe(prepared, specs, measured)
        write_task_tensors(folder, recipe, learned)
        write_description(folder, recipe, geometry, prepared.files)
    prepared.kept.clear()
    name, seconds = prepared.chain.method.rule.name, time.perf_counter() - began
    log.info("%s of %d experts merged and written in %.2f s", name, len(prepared.pool), seconds)
    return load(out)


class HubSink:
    """Writes canonical names under the hub's."""

    def __init__(self, writer: SafetensorsWriter):
        self.writer = writer

    def write(self, name: str, values: Tensor, start: int = 0) -> None:
        self.writer.write(hub_name(name), values, start)


def look_at(
    pool: ModelPool,
    threads: int | None = None,
    memory: int | str | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> PoolView:
    """The pool as the engine sees it. Raises ConfigError for a device or a budget that cannot be had."""
    try:
        if torch.device(device).type not in MERGING:
            raise ConfigError(f"device: {device!r} does not merge; cpu, cuda and cuda:N do")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device: {device!r} cannot be used ({str(error).splitlines()[0]})") from None
    limit = as_bytes(memory)
    return PoolView(pool, threads=threads or available_cores(), memory=limit, device=device, progress=progress)


def merge_device(name: str) -> str:
    """Where a run whose forward passes are on a device merges: there if it is named and can, else on the CPU."""
    return "cpu" if name in ("auto", "mps") else name


def open_pool(models: Models, out: str | Path | None = None, overwrite: bool = False) -> ModelPool:
    """Any form of pool as opened, checked checkpoints; `out` is checked against them. Warnings go to the log."""
    if out is not None:
        check_output(Path(out), overwrite)
    if isinstance(models, (str, Path)):
        models = HuggingFaceClipVisionPool.from_yaml(models)
    pool = models.weights if isinstance(models, HuggingFaceClipVisionPool) else models
    if not isinstance(pool, (ModelPool, Mapping)):
        raise PoolError(f"takes a pool, a preset's name, or models by name (found a {type(pool).__name__})")
    pool = pool if isinstance(pool, ModelPool) else pool_from_memory(pool)
    if out is not None:
        check_output(Path(out), overwrite, [file for checkpoint in pool.checkpoints for file in checkpoint.files])
    for warning in pool.warnings:
        log.warning("%s", warning)
    return pool


def chain_of(
    method: RuleTree | Chain,
    settings: Mapping[str, Any],
    edits: Sequence[RuleTree],
    finishes: Sequence[RuleTree],
    seed: int,
    after: RuleTree | None = None,
) -> Chain:
    """A method with further settings as a checked chain; one that is a chain already is taken as it is."""
    if isinstance(method, Chain):
        return method
    tree = {**({"name": method} if isinstance(method, str) else method), **settings}
    return configure(tree, edits, finishes, seed, after)


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype by name. Raises ConfigError for one that weights cannot have."""
    if dtype is None:
        return None
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise ConfigError(f"dtype: {str(dtype)!r} is none of {', '.join(DTYPES)}")
    return found


def recipe_of(folder: Path) -> dict[str, Any] | None:
    """The recipe of a model of the pool that was merged itself: what that has seen, its merges have seen, too."""
    with suppress(CheckpointError):
        return read_recipe(folder)
    return None


def make_recipe(prepared: Prepared, specs: Mapping[str, TensorSpec], measured: Mapping[str, int]) -> dict[str, Any]:
    """All that is needed to get a result again: method, settings, seed, the pool with revisions and hashes."""
    dtypes = sorted({str(spec.dtype).removeprefix("torch.") for spec in specs.values()})
    folders = dict.fromkeys(file.parent for checkpoint in prepared.pool.checkpoints for file in checkpoint.files)
    earlier = [found for folder in folders if (found := recipe_of(folder))]
    recipe = {
        "schema": SCHEMA,
        "clipfuse": __version__,
        "kind": "per_task" if prepared.chain.after else "weights",
        **prepared.chain.to_tree(),
        "uses": list(dict.fromkeys([*prepared.chain.uses, *(use for one in earlier for use in one["uses"])])),
        "dtype": dtypes[0] if len(dtypes) == 1 else dtypes,
        "pool": prepared.pool.members,
    }
    arrived = prepared.arrived
    measured = add_up([arrived.tally, Counter(measured)]) if arrived else measured
    geometry = prepared.pool.geometry
    extra = {
        "linearised": geometry is not None and geometry.linearised,
        "plugins": [asdict(origin) for origin in prepared.chain.origins],
        "arrivals": arrived and arrived.to_tree(),
        "measured": dict(sorted(measured.items())),
        "data": [*prepared.data_seen, *(row for one in earlier for row in one.get("data", ()))],
        "files": sorted(prepared.files),
        "warnings": prepared.pool.warnings,
    }
    return recipe | {key: value for key, value in extra.items() if value}
