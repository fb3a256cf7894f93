"""The engine: runs a chain over a pool. It alone owns loops, threads, slices, seeds, progress, θ0 + λΔ and rounding.

Order: edits(τ) → rule → × scaling_factor → finishes → θ0 + Δ, in float32, rounded once to the result's dtype.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.errors import ConfigError, PoolError
from clipfuse.fusion.arrivals import Arrived, arrive
from clipfuse.fusion.chain import Chain, behind
from clipfuse.fusion.kept import Kept, kept_for
from clipfuse.fusion.lent import Lender
from clipfuse.fusion.prepared import Prepared
from clipfuse.fusion.sinks import Sink, TensorSink, scratch
from clipfuse.fusion.step import Step, call
from clipfuse.fusion.streams import Run, complete
from clipfuse.pool import PRETRAINED, Leaf, PoolView
from clipfuse.pool.view import Grain, coarsest

log = logging.getLogger(__name__)
Parts = tuple[Mapping[str, Tensor], ...]
"""What a sweep shares, float32 by name: Δ before λ and finishes; for an affine setting, Δ at 0 and at 1 of it."""


def check_chain(chain: Chain, view: PoolView, lender: Lender | None = None) -> None:
    """All that can be known about a chain and a pool before weights are read.

    Raises:
        PoolError: no base where one is needed, another number of experts than the method takes, or one without a task
            where the method looks at images.
        ConfigError: settings that do not fit the pool's experts, too small a memory budget, no images to look at.
    """
    rule, pool = chain.method.rule, view.pool
    if chain.needs_base and pool.base is None:
        what = rule.name if rule.returns == "delta" else f"finishes.{chain.finishes[0].rule.name}"
        raise PoolError(f"{what}: needs a base; the pool has no _pretrained_ model")
    if rule.models is not None and len(pool) != rule.models:
        raise PoolError(f"{rule.name}: takes {rule.models} experts; the pool has {len(pool)} ({', '.join(pool.tasks)})")
    replace(view, appetite=chain.appetite(len(pool))).check_memory(chain.grain)
    if lender is not None and not isinstance(lender, Lender):
        raise ConfigError(f"data: takes what clipfuse.open_data(…) gives (found {lender!r:.60})")
    for step in chain.rules:
        if step.looks and lender is None:
            raise ConfigError(
                f"{step.rule.name}: looks at images ({', '.join(step.uses)}); name their tasks: taskpool=…, in Python "
                "data=clipfuse.open_data(…)"
            )
        if step.looks and lender:
            lender.check(pool.tasks, step.uses)
    for step in chain.steps:
        if step.rule.prepare and not step.rule.passes:
            step.rule.prepare(view, step.cfg)


def prepare(chain: Chain, view: PoolView, before: Arrived | None = None, lender: Lender | None = None) -> Prepared:
    """Check a chain against a pool, borrow the images that its method looks at, and let its steps look at the pool.

    The view gives pool, threads, memory, device and progress; the chain gives edits and seed. A continual method
    merges here, and goes on from `before` if that is given. Raises as `check_chain`.
    """
    check_chain(chain, view, lender)
    if len(view.pool) == 1 and before is None:
        log.warning("%s: is the only expert of the pool: there is nothing to merge it with", view.tasks[0])
    for task in view.pool.unmoved():
        log.warning("%s: equals the base: its task vector is zero", task)
    raw = replace(
        view, seed=chain.seed, appetite=chain.appetite(chain.at_once(len(view.pool))), edits=(), grain="element"
    )
    base = next((str(m["path"]) for m in raw.pool.members if m["name"] == PRETRAINED and m.get("path")), None)
    lent, lent_after = (
        lender.lend(raw.tasks, step.uses, chain.seed, base) if lender and step and step.looks else None
        for step in (chain.method, chain.after)
    )
    given = getattr(chain.method.cfg, "found", None)
    content = [given and given.to_text(), *([o.file, o.sha256] for o in chain.origins)]
    facts = [raw.tasks, chain.to_learn(), content, *(part.facts for part in (lent, lent_after) if part)]
    kept = kept_for(raw.pool.checkpoints, facts) if chain.looks else Kept()
    if chain.method.rule.continual:
        merged = after_arrivals(chain, raw, arrive(chain, raw, before))
        return replace(merged, lent_after=lent_after, kept=kept)
    view, states = behind(chain.edits, raw)
    method = chain.method
    states.append(method.rule.prepare(view, method.cfg) if method.rule.prepare else None)
    return Prepared(chain, view, (*states, *finishing(chain, raw)), lent, kept, lent_after=lent_after)


def after_arrivals(chain: Chain, raw: PoolView, arrived: Arrived) -> Prepared:
    """A chain whose method has merged the experts: what is left reads the base and what is merged."""
    experts = len(raw.tasks)
    appetite = max([4.0, *(step.rule.sizes(experts) for step in chain.finishes)]) / experts
    view = replace(raw, progress=None, appetite=appetite)
    return Prepared(chain, view, (*[None] * len(chain.edits), arrived, *finishing(chain, raw)))


def finishing(chain: Chain, raw: PoolView) -> list[Any]:
    """The state of each finish, prepared on the pool before the edits."""
    return [step.rule.prepare(raw, step.cfg) if step.rule.prepare else None for step in chain.finishes]


def merged_leaf(prepared: Prepared, leaf: Leaf) -> Tensor:
    """Δ before λ and finishes, or θ of a method that merges weights, of one leaf as stored."""
    rule = prepared.chain.method.rule
    if prepared.arrived:
        return prepared.arrived.delta(leaf)
    if leaf.untouched and rule.returns == "delta":
        return torch.zeros_like(leaf.base)
    edited = prepared.view.edited(leaf)
    if rule.affine_in is None:
        return applied(prepared, prepared.chain.method, edited)
    return between(*ends(prepared, edited), getattr(prepared.chain.method.cfg, rule.affine_in))


def ends(prepared: Prepared, edited: Leaf) -> tuple[Tensor, Tensor]:
    """The method's result at 0 and at 1 of the setting that it is affine in."""
    name = str(prepared.chain.method.rule.affine_in)
    at = [prepared.chain.with_setting(name, value).method for value in (0.0, 1.0)]
    return applied(prepared, at[0], edited), applied(prepared, at[1], edited)


def between(zero: Tensor, one: Tensor, value: float) -> Tensor:
    """zero + value · (one − zero); exact at both ends."""
    return torch.lerp(zero, one, value)


def applied(prepared: Prepared, method: Step, edited: Leaf) -> Tensor:
    return call(method, prepared.states[len(prepared.chain.edits)], edited)


def finished_leaf(prepared: Prepared, leaf: Leaf, merged: Tensor, factor: float) -> Tensor:
    """Final weights of one leaf, float32: θ0 + finishes(λΔ), each operation rounded once."""
    chain = prepared.chain
    is_delta = chain.method.rule.returns == "delta"
    if not is_delta and not chain.finishes:
        return merged
    delta = merged * factor if is_delta else merged - leaf.base
    if not chain.finishes:
        return torch.add(leaf.base, delta, out=delta)
    first = len(chain.edits) + 1
    for step, state in zip(chain.finishes, prepared.states[first:], strict=True):
        delta = call(step, state, leaf, delta)
    return leaf.base + delta


def run(prepared: Prepared, sink: Sink, specs: Mapping[str, TensorSpec]) -> Counter[str]:
    """Merge every leaf into `sink` in the dtypes of `specs`; what edits and rules counted, added up."""
    chain = prepared.chain
    if chain.method.rule.streams:
        with scratch(prepared.result_specs(torch.float32)) as unscaled:
            measured = run_unscaled(prepared, (unscaled,))
            run_scaled(prepared, (unscaled,), sink, specs)
        return measured

    def work(leaf: Leaf) -> Counter[str]:
        write(sink, specs, leaf, finished_leaf(prepared, leaf, merged_leaf(prepared, leaf), chain.scaling_factor))
        return leaf.tally

    return add_up(prepared.view.map_raw(work, chain.grain))


def run_unscaled(prepared: Prepared, parts: Parts) -> Counter[str]:
    """The part of a merge that a sweep shares, into `parts`: Δ before λ and finishes, or the two ends of it."""
    chain, rule, view = prepared.chain, prepared.chain.method.rule, prepared.view
    sinks = [TensorSink(part) for part in parts]
    if rule.streams:
        state = prepared.states[len(chain.edits)]
        extra = [state] if rule.prepare else []
        with Run.open(view, prepared.lent, prepared.kept, edits=chain.edit_trees) as context:
            found = rule.function(view, chain.method.cfg, context, *extra)
            for name, delta in complete(rule.name, found, view.specs):
                sinks[0].write(name, delta)
        prepared.files.update(context.files)
        return context.tally

    def work(leaf: Leaf) -> Counter[str]:
        found = ends(prepared, view.edited(leaf)) if len(parts) == 2 else (merged_leaf(prepared, leaf),)
        for sink, merged in zip(sinks, found, strict=True):
            sink.write(leaf.name, merged, leaf.start)
        return leaf.tally

    return add_up(view.map_raw(work, chain.grain))


def run_scaled(prepared: Prepared, parts: Parts, sink: Sink, specs: Mapping[str, TensorSpec]) -> None:
    """What is left of a merge for one value of the swept setting: the same bits as `run`. Shows no progress."""
    chain = prepared.chain

    def work(leaf: Leaf) -> None:
        shape, last = leaf.stored_experts[0].shape, leaf.start + leaf.numel
        found = [part[leaf.name].reshape(-1)[leaf.start : last].view(shape).to(prepared.view.device) for part in parts]
        merged = found[0] if len(found) == 1 else between(found[0], found[1], getattr(chain.method.cfg, chain.swept))
        write(sink, specs, leaf, finished_leaf(prepared, leaf, merged, chain.scaling_factor))

    grains: list[Grain] = [step.rule.grain for step in chain.finishes]
    for _ in replace(prepared.view, progress=None, edits=(), grain="element").map_raw(
        work, coarsest("element", *grains)
    ):
        pass


def write(sink: Sink, specs: Mapping[str, TensorSpec], leaf: Leaf, final: Tensor) -> None:
    """Round to the result's dtype, once, and write. Raises PoolError where that overflows."""
    rounded = final.to(specs[leaf.name].dtype)
    if not isfinite(rounded.sum().item()) and not rounded.isfinite().all():
        raise PoolError(f"{leaf.name}: the merged weights are not finite in {rounded.dtype}")
    sink.write(leaf.name, rounded, leaf.start)


def add_up(tallies: Iterable[Counter[str]]) -> Counter[str]:
    """Sum of counts; zeros are kept."""
    found: Counter[str] = Counter()
    for tally in tallies:
        found.update(tally)
    return found
