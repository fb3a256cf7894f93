"""Continual methods: experts arrive one at a time, and memory does not grow with their number.

S_1 = τ_1, S_t = rule(S_{t−1}, τ_t), Δ = factor · S_t. S lies in scratch, float32, and is worked on in place.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from clipfuse.checkpoints.checkpoint import Checkpoint, task_vector
from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.fusion.chain import Chain, behind
from clipfuse.fusion.random_bits import philox_key
from clipfuse.fusion.registry import ContinualConfig, Norms
from clipfuse.fusion.sinks import TensorSink, scratch
from clipfuse.fusion.step import call
from clipfuse.pool import Leaf, ModelPool, PoolView
from clipfuse.shapes import Float

MERGED = "_merged_"
"""What is merged so far, as a member of a pair."""


@dataclass(frozen=True)
class Arrived:
    """What is merged so far, and all that is needed to go on from it but the base's weights."""

    merged: Mapping[str, Tensor] = field(repr=False)
    """S_t, float32, by canonical name."""
    order: tuple[str, ...]
    """Names of the experts, as they arrived."""
    norms: tuple[float, ...]
    """‖τ_k‖ of each, over the whole model, after the edits."""
    factor: float
    """Δ = factor · S_t."""
    tally: Counter[str] = field(default_factory=Counter)
    """What edits and the rule counted."""
    base: Checkpoint | None = None
    """θ0, where it is at hand."""

    def delta(self, leaf: Leaf) -> Float[Tensor, "*shape"]:
        """Δ of a leaf before λ and finishes."""
        like = leaf.stored_experts[0]
        part = self.merged[leaf.name].reshape(-1)[leaf.start : leaf.start + leaf.numel]
        return part.to(like.device).view(like.shape) * self.factor

    def to_tree(self) -> dict[str, Any]:
        """What a recipe says of it."""
        return {"order": list(self.order), "norms": list(self.norms), "factor": self.factor}


def arrive(chain: Chain, view: PoolView, before: Arrived | None = None) -> Arrived:
    """Merge the experts of a pool one after the other, beginning with the first or from what is merged already.

    One model in scratch, whatever the number of experts. Each is read once, and as often as `prepare` of the edits and
    the method does.

    Raises:
        OutputError: no space for the scratch.
    """
    pool, rule = view.pool, chain.method.rule
    order, norms, tally = (before.order, before.norms, Counter(before.tally)) if before else ((), (), Counter())
    previous, size = before.merged if before else None, 0.0
    with scratch({name: TensorSpec(spec.shape, torch.float32) for name, spec in pool.specs.items()}) as merged:
        arriving = arrival_order(pool.tasks, chain.method.cfg)
        for task in arriving:
            measured = rule.rescale is not None and task == arriving[-1]
            norm, size, counted = one_more(chain, view, task, previous, merged, measured)
            order, norms, previous = (*order, task), (*norms, norm), merged
            tally.update(counted)
    factor = rule.rescale(Norms(size, norms)) if rule.rescale else 1.0
    return Arrived(merged, order, norms, factor, tally, pool.base)  # the mapping lives as long as its tensors


def arrival_order(tasks: tuple[str, ...], cfg: ContinualConfig) -> list[str]:
    """The pool's order, or one that depends on the seed and the names alone."""
    return sorted(tasks, key=lambda task: philox_key((cfg.seed, "arrival", task))) if cfg.shuffle else list(tasks)


def one_more(
    chain: Chain,
    view: PoolView,
    task: str,
    previous: Mapping[str, Tensor] | None,
    into: Mapping[str, Tensor],
    measured: bool,
) -> tuple[float, float, Counter[str]]:
    """Merge one expert with what is merged; ‖τ‖, ‖S‖ if `measured`, what was counted. `into` may be `previous`."""
    base, expert, method = view.pool.base, view.pool.experts[task], chain.method
    alone, _ = behind(chain.edits, over(view, ModelPool(base, {task: expert})))
    pair, merge = alone, first_row
    if previous is not None:
        pool = ModelPool(base, {MERGED: task_vector(previous, MERGED), task: expert})
        pair = over(view, pool).through([partial(beside, alone)] if chain.edits else [], alone.grain)
        merge = partial(call, method, method.rule.prepare(pair, method.cfg) if method.rule.prepare else None)
    sink = TensorSink(into)

    def work(leaf: Leaf) -> tuple[float, float, Counter[str]]:
        edited = pair.edited(leaf)
        arriving = square_sum(edited.deltas[-1])
        merged = merge(edited)
        sink.write(leaf.name, merged, leaf.start)
        return arriving, square_sum(merged) if measured else 0.0, leaf.tally

    arriving, merged, tally = 0.0, 0.0, Counter()
    for a, m, counted in pair.map_raw(work, method.rule.grain):
        arriving, merged = arriving + a, merged + m
        tally.update(counted)
    return arriving**0.5, merged**0.5, tally


def over(view: PoolView, pool: ModelPool) -> PoolView:
    """The view over another pool; of what it reads, only an expert's share is told."""
    told, members = view.progress, len(pool.checkpoints)
    tell: Callable[[int], None] | None = (lambda count: told(count // members)) if told else None
    return replace(view, pool=pool, others=view.known, progress=tell)


def first_row(leaf: Leaf) -> Float[Tensor, "*shape"]:
    return leaf.deltas[0]


def beside(alone: PoolView, pair: Leaf) -> Float[Tensor, "2 *shape"]:
    """What is merged so far as it is, and the expert's task vector through the edits."""
    arriving = alone.edited(pair.only([1])).deltas[0]
    return torch.stack([pair.stored_experts[0], arriving])


def square_sum(values: Tensor) -> float:
    """‖values‖², float64."""
    return float(torch.linalg.vector_norm(values, dtype=torch.float64).square())
