"""The engine: runs a chain over a pool. It alone owns loops, threads, slices, seeds, progress, θ0 + λΔ and rounding.

Order: edits(τ) → rule → × scaling_factor → finishes → θ0 + Δ, in float32, rounded once to the result's dtype.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.cores import available_cores
from clipfuse.errors import ConfigError, PoolError
from clipfuse.fusion.chain import Chain, Step
from clipfuse.pool import Leaf, ModelPool, PoolView
from clipfuse.pool.view import Grain, Progress, coarsest


@runtime_checkable
class Sink(Protocol):
    """Where results go; slices come in any order and from any thread."""

    def write(self, name: str, values: Tensor, start: int = 0) -> None: ...


class TensorSink:
    """Results into contiguous `tensors` by name."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = tensors

    @classmethod
    def empty(cls, specs: Mapping[str, TensorSpec]) -> "TensorSink":
        """A sink into new memory."""
        return cls({name: torch.empty(spec.shape, dtype=spec.dtype) for name, spec in specs.items()})

    def write(self, name: str, values: Tensor, start: int = 0) -> None:
        self.tensors[name].view(-1)[start : start + values.numel()] = values.reshape(-1)


@dataclass(frozen=True)
class Prepared:
    """A chain that fits its pool, with the state of every step that needs one."""

    chain: Chain
    view: PoolView
    """The pool through the chain's edits."""
    states: tuple[Any, ...]
    """One a step, in the chain's order."""

    @property
    def pool(self) -> ModelPool:
        return self.view.pool

    def result_specs(self, dtype: torch.dtype | None = None) -> dict[str, TensorSpec]:
        """Shape and dtype of every merged parameter: the base's (or first expert's) unless `dtype` is given."""
        return {name: TensorSpec(spec.shape, dtype or spec.dtype) for name, spec in self.pool.specs.items()}


def check_chain(chain: Chain, pool: ModelPool) -> None:
    """All that can be known about a chain and a pool before weights are read.

    Raises:
        PoolError: no base where one is needed, or another number of experts than the method takes.
        ConfigError: settings that do not fit the pool's experts.
    """
    rule = chain.method.rule
    if chain.needs_base and pool.base is None:
        what = rule.name if rule.returns == "delta" else f"finishes.{chain.finishes[0].rule.name}"
        raise PoolError(f"{what}: needs a base; the pool has no _pretrained_ model")
    if rule.models is not None and len(pool) != rule.models:
        raise PoolError(f"{rule.name}: takes {rule.models} experts; the pool has {len(pool)} ({', '.join(pool.tasks)})")
    view = PoolView(pool, seed=chain.seed)
    for step in chain.steps:
        if step.rule.prepare and not step.rule.passes:
            step.rule.prepare(view, step.cfg)


def prepare(chain: Chain, pool: ModelPool, threads: int | None = None, progress: Progress | None = None) -> Prepared:
    """Check a chain against a pool and let its steps look at the whole pool first. Raises as `check_chain`."""
    check_chain(chain, pool)
    raw = PoolView(pool, seed=chain.seed, threads=threads or available_cores(), progress=progress)
    states: list[Any] = []
    edits: list[Callable[[Leaf], Tensor]] = []
    grain: Grain = "element"
    for step in chain.steps:
        sees = raw if step.rule.kind == "finish" else raw.through(edits, grain)
        states.append(step.rule.prepare(sees, step.cfg) if step.rule.prepare else None)
        if step.rule.kind == "edit":
            edits.append(partial(call, step, states[-1]))
            grain = coarsest(grain, step.rule.grain)
    return Prepared(chain, raw.through(edits, grain), tuple(states))


def call(step: Step, state: Any, leaf: Leaf, *delta: Tensor) -> Tensor:
    """A step's function on a leaf, its state appended if it prepares one."""
    return step.rule.function(leaf, *delta, step.cfg, *([state] if step.rule.prepare else []))


def merged_leaf(prepared: Prepared, leaf: Leaf) -> Tensor:
    """Δ before λ and finishes, or θ of a method that merges weights, of one leaf as stored."""
    chain, edited = prepared.chain, prepared.view.edited(leaf)
    merged = call(chain.method, prepared.states[len(chain.edits)], edited)
    if merged.numel() != leaf.numel:
        raise ConfigError(
            f"{chain.method.rule.name}: gave {tuple(merged.shape)} for {leaf.name}, {leaf.numel} elements"
        )
    return merged


def finished_leaf(prepared: Prepared, leaf: Leaf, merged: Tensor, factor: float) -> Tensor:
    """Final weights of one leaf, float32: θ0 + finishes(λΔ), each operation rounded once."""
    chain = prepared.chain
    is_delta = chain.method.rule.returns == "delta"
    if not is_delta and not chain.finishes:
        return merged
    delta = merged * factor if is_delta else merged - leaf.base
    first = len(chain.edits) + 1
    for step, state in zip(chain.finishes, prepared.states[first:], strict=True):
        delta = call(step, state, leaf, delta)
    return leaf.base + delta


def scaling_factor(chain: Chain) -> float:
    """λ of a method that has one, else 1."""
    return getattr(chain.method.cfg, "scaling_factor", 1.0)


def run(prepared: Prepared, sink: Sink, specs: Mapping[str, TensorSpec]) -> Counter[str]:
    """Merge every leaf into `sink` in the dtypes of `specs`; what edits and rules counted, added up."""
    factor = scaling_factor(prepared.chain)

    def work(leaf: Leaf) -> Counter[str]:
        write(sink, specs, leaf, finished_leaf(prepared, leaf, merged_leaf(prepared, leaf), factor))
        return leaf.tally

    return add_up(prepared.view.map_raw(work, prepared.chain.grain))


def run_unscaled(prepared: Prepared, sink: Sink) -> Counter[str]:
    """Merge every leaf into `sink` as float32 before λ and finishes: the part that a sweep over λ shares."""

    def work(leaf: Leaf) -> Counter[str]:
        sink.write(leaf.name, merged_leaf(prepared, leaf), leaf.start)
        return leaf.tally

    return add_up(prepared.view.map_raw(work, prepared.chain.grain))


def run_scaled(
    prepared: Prepared, unscaled: Mapping[str, Tensor], factor: float, sink: Sink, specs: Mapping[str, TensorSpec]
) -> None:
    """What is left of a merge for one value of λ; the same bits as `run` with that value. Shows no progress."""

    def work(leaf: Leaf) -> None:
        merged = (
            unscaled[leaf.name].reshape(-1)[leaf.start : leaf.start + leaf.numel].view(leaf.stored_experts[0].shape)
        )
        write(sink, specs, leaf, finished_leaf(prepared, leaf, merged, factor))

    for _ in replace(prepared.view, progress=None).map_raw(work, prepared.chain.grain):
        pass


def write(sink: Sink, specs: Mapping[str, TensorSpec], leaf: Leaf, final: Tensor) -> None:
    """Round to the result's dtype, once, and write. Raises PoolError where that overflows."""
    rounded = final.to(specs[leaf.name].dtype)
    if not rounded.isfinite().all():
        raise PoolError(f"{leaf.name}: the merged weights are not finite in {rounded.dtype}")
    sink.write(leaf.name, rounded, leaf.start)


def add_up(tallies: Iterable[Counter[str]]) -> Counter[str]:
    """Sum of counts; zeros are kept."""
    found: Counter[str] = Counter()
    for tally in tallies:
        found.update(tally)
    return found
