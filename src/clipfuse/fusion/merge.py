"""`merge`: a pool and a method in, a `Merged` out; and the sweep over λ that merges once."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipfuse.checkpoints.names import hub_name
from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.checkpoints.writer import SafetensorsWriter, check_output, new_folder
from clipfuse.errors import ConfigError, ModelError, PoolError
from clipfuse.fusion.chain import Chain, configure
from clipfuse.fusion.engine import Prepared, Sink, TensorSink, prepare, run, run_scaled, run_unscaled
from clipfuse.fusion.merged import NO_GEOMETRY, SCHEMA, Merged, hub_writer, load, write_description
from clipfuse.pool import HuggingFaceClipVisionPool, ModelPool, pool_from_memory
from clipfuse.pool.view import Progress
from clipfuse.version import __version__

Models = str | Path | HuggingFaceClipVisionPool | ModelPool | Mapping[str, nn.Module | Mapping[str, Any]]
RuleTree = str | Mapping[str, Any]
log = logging.getLogger(__name__)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}


def merge(
    models: Models,
    method: RuleTree | Chain,
    *,
    edits: Sequence[RuleTree] = (),
    finishes: Sequence[RuleTree] = (),
    seed: int = 0,
    dtype: torch.dtype | str | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    threads: int | None = None,
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
        seed: For random edits.
        dtype: Of the result; the base's (or first expert's) by default.
        out: Stream into this folder instead of memory; it appears whole or not at all.
        threads: Defaults to the cores of this process. The bits of the result do not depend on it.
        progress: Called with the number of bytes read since the last call.

    Raises:
        ConfigError, PoolError, CheckpointError, OutputError: before weights are read where that can be known.
    """
    chain = method if isinstance(method, Chain) else configure(with_settings(method, settings), edits, finishes, seed)
    if chain.scaling_factors:
        raise ConfigError("method.scaling_factor: a list of values is for a run with select=val; a merge takes one")
    pool = open_pool(models, out, overwrite)
    prepared = prepare(chain, pool, threads, progress)
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
    geometry = prepared.pool.geometry
    if out is None:
        sink = TensorSink.empty(specs)
        return Merged(sink.tensors, make_recipe(prepared, specs, fill(sink)), geometry)
    if geometry is None:
        raise ModelError(NO_GEOMETRY)
    began = time.perf_counter()
    with new_folder(Path(out), overwrite) as folder:
        with hub_writer(folder, specs) as writer:
            measured = fill(HubSink(writer))
        write_description(folder, make_recipe(prepared, specs, measured), geometry)
    name, seconds = prepared.chain.method.rule.name, time.perf_counter() - began
    log.info("%s of %d experts merged and written in %.2f s", name, len(prepared.pool), seconds)
    return load(out)


class HubSink:
    """Writes canonical names under the hub's."""

    def __init__(self, writer: SafetensorsWriter):
        self.writer = writer

    def write(self, name: str, values: Tensor, start: int = 0) -> None:
        self.writer.write(hub_name(name), values, start)


@dataclass(frozen=True)
class Sweep:
    """A merge up to λ: every value then costs θ0 + λΔ, and has the bits of a merge with that value."""

    prepared: Prepared
    specs: Mapping[str, TensorSpec]
    """Shape and dtype of the results."""
    unscaled: Mapping[str, Tensor]
    """Δ before λ and finishes, float32, by name."""
    measured: Mapping[str, int]
    """What edits and rules counted."""

    @property
    def values(self) -> tuple[float, ...]:
        """The values of λ to choose from."""
        return self.prepared.chain.scaling_factors

    def write(self, factor: float, sink: Sink) -> None:
        """Write the merge with λ = `factor`, rounded to the results' dtype."""
        run_scaled(self.prepared, self.unscaled, factor, sink, self.specs)

    def merged(self, chain: Chain, out: str | Path | None = None) -> Merged:
        """The merge with the one λ of `chain`, this sweep's with a value chosen; in memory or in a new folder."""

        def fill(sink: Sink) -> Mapping[str, int]:
            self.write(chain.method.cfg.scaling_factor, sink)
            return self.measured

        return finished(replace(self.prepared, chain=chain), self.specs, out, False, fill)


def sweep(
    models: Models,
    chain: Chain,
    dtype: torch.dtype | str | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Sweep:
    """Merge up to λ a chain whose scaling_factor is a list. Raises as `merge`."""
    prepared = prepare(chain, open_pool(models), threads, progress)
    specs = prepared.result_specs(as_dtype(dtype))
    sink = TensorSink.empty(prepared.result_specs(torch.float32))
    measured = run_unscaled(prepared, sink)
    return Sweep(prepared, specs, sink.tensors, measured)


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


def with_settings(method: RuleTree, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {**({"name": method} if isinstance(method, str) else method), **settings}


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype by name. Raises ConfigError for one that weights cannot have."""
    if dtype is None:
        return None
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise ConfigError(f"dtype: {str(dtype)!r} is none of {', '.join(DTYPES)}")
    return found


def make_recipe(prepared: Prepared, specs: Mapping[str, TensorSpec], measured: Mapping[str, int]) -> dict[str, Any]:
    """All that is needed to get a result again: method, settings, seed, the pool with revisions and hashes."""
    dtypes = sorted({str(spec.dtype).removeprefix("torch.") for spec in specs.values()})
    recipe = {
        "schema": SCHEMA,
        "clipfuse": __version__,
        "kind": "weights",
        **prepared.chain.to_tree(),
        "uses": list(prepared.chain.uses),
        "dtype": dtypes[0] if len(dtypes) == 1 else dtypes,
        "pool": prepared.pool.members,
    }
    extra = {"measured": dict(sorted(measured.items())), "warnings": prepared.pool.warnings}
    return recipe | {key: value for key, value in extra.items() if value}
