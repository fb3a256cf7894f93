"""Task arithmetic in the trust region: without the entries where one task's moves hurt another one most."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.errors import PoolError
from clipfuse.fusion.blocks import total
from clipfuse.fusion.by_image import gradients_by_image, part
from clipfuse.fusion.forward import Forward
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import DeltaConfig, Uses, method
from clipfuse.fusion.streams import Run
from clipfuse.pool import Leaf, PoolView
from clipfuse.stats.gradients import chunks

TRUST_REGION = Paper(
    "Task Arithmetic in Trust Region: A Training-Free Model Merging Approach to Navigate Knowledge Conflicts",
    "Sun, Wenju and Li, Qingyong and Wang, Wen and Geng, Yangli-ao and Li, Boyang",
    2025,
    "2501.15065",
    "ICLR",
)

STRETCH = 1 << 20
"""Numbers that are counted at a time."""


class TrustRegion(DeltaConfig):
    """Δ = (Σ_k τ_k) ⊙ [Ω below its quantile], Ω = Σ_i Σ_{k≠i} mean_x |∂ℓ_i(x)/∂θ at θ0| ⊙ |τ_k|."""

    scaling_factor: float = 0.3
    """λ in θ0 + λΔ, dimensionless."""
    quantile: Annotated[float, Field(gt=0, le=1)] = 0.99
    """Share of all entries that is kept: those of the smallest Ω; 1 keeps everything."""
    images: Annotated[int, Field(ge=1, examples=[5])] = 128
    """Training images of each expert's task that gradients are taken of."""
    zero_shot: bool = False
    """Take |τ_i| in place of the gradients of task i: then no images are looked at."""


def trust_region_uses(cfg: TrustRegion) -> tuple[Uses, ...]:
    """What it looks at."""
    return () if cfg.zero_shot else ("train_images", "train_labels")


@method(paper=TRUST_REGION, grain="leaf", uses=trust_region_uses)
def trust_region(view: PoolView, cfg: TrustRegion, run: Run) -> Iterator[tuple[str, Tensor]]:
    """Task arithmetic in the trust region (Sun et al., 2025).

    Δ = (Σ_k τ_k) ⊙ [Ω < q], Ω_j = Σ_i Σ_{k≠i} mean_x |∂ℓ_i(x)/∂θ_j at θ0| · |τ_k,j| over training images x of task i,
    ℓ_i the cross-entropy of their labels; q is the (⌊quantile · d⌋ + 1)-th smallest of the d entries of Ω, exactly.
    Entries without any conflict, Ω = 0, are always kept.

    An image costs a forward and a backward pass of the base and half as much again for the size of its own gradient.
    Two models in scratch, the gradients of one task at a time and Ω; task vectors are read once for every expert, and
    once more for the sum.

    Deviations: in FusionBench's code nothing is kept where Ω = 0 for more than a share `quantile` of all entries, and
    quantile = 1 drops the largest entry. That code files the gradients of all tasks under one name, so that its Ω is
    zero and its result the base unless `zero_shot`. It draws other images.

    Raises:
        PoolError: gradients that are not finite.

    Source: the paper (OpenReview q3ztjJRQuJ), and FusionBench's TaskArithmeticWithTrustRegionForCLIP.
    """
    specs = {name: TensorSpec(spec.shape, torch.float32) for name, spec in view.specs.items()}
    conflicts = run.scratch(specs)
    quiet = replace(view, progress=None)
    if cfg.zero_shot:
        for number in range(len(view.tasks)):
            add_conflicts(quiet, number, conflicts)
    else:
        look(quiet, cfg, run, run.scratch(specs), conflicts)
    size = sum(spec.numel for spec in specs.values())
    rank = int(cfg.quantile * size)
    limit = smallest(conflicts, rank) if rank < size else float("inf")

    def merged(leaf: Leaf) -> tuple[str, Tensor]:
        own = conflicts[leaf.name].to(leaf.deltas.device)
        return leaf.name, total(leaf.deltas).mul_((own < limit) | (own == 0))

    yield from view.map(merged, "leaf")


def look(
    view: PoolView, cfg: TrustRegion, run: Run, slopes: Mapping[str, Tensor], conflicts: Mapping[str, Tensor]
) -> None:
    """Add up Ω, in place; `slopes` are those of the task at hand, summed over its images."""
    forward = Forward(run)
    images = {task: run.data.images(task, "train") for task in view.tasks}
    rows = [images[task].choice(cfg.images) for task in view.tasks]
    steps = [(number, some) for number, own in enumerate(rows) for some in chunks(own, forward.tower)]
    named = {"slopes": slopes, "conflicts": conflicts}
    state = {f"{what} {name}": tensor for what, of in named.items() for name, tensor in of.items()}
    for step in run.steps(len(steps), state, "trust_region"):
        number, some = steps[step]
        task = view.tasks[number]
        with gradients_by_image(forward, slopes, 1):
            logits = forward.logits(task, images[task].pixels(some))
            functional.cross_entropy(logits, images[task].labels(some), reduction="sum").backward()
        if some[-1] == rows[number][-1]:
            add_conflicts(view, number, conflicts, slopes, 1 / len(rows[number]))


@torch.no_grad()
def add_conflicts(
    view: PoolView,
    number: int,
    conflicts: Mapping[str, Tensor],
    slopes: Mapping[str, Tensor] | None = None,
    share: float = 1.0,
) -> None:
    """Ω += share · slopes ⊙ Σ_{k≠i} |τ_k| for expert number i; slopes are empty afterwards. Without any, |τ_i| is."""

    def add(leaf: Leaf) -> None:
        sizes = leaf.deltas.flatten(1).abs()
        own = part(leaf, slopes).to(sizes.device) if slopes else sizes[number].clone()
        sizes[number] = 0
        part(leaf, conflicts).add_(own.mul(total(sizes)).to(part(leaf, conflicts).device), alpha=share)
        if slopes:
            part(leaf, slopes).zero_()

    for _ in view.map(add):
        pass


def smallest(tensors: Mapping[str, Tensor], rank: int) -> float:
    """The smallest of all numbers but `rank`, exactly, of float32 numbers that are not negative.

    Their bits sort as they do: one pass finds the upper half of the answer's bits, another one the lower half. Raises
    PoolError for numbers that are not finite.
    """
    upper = np.zeros(1 << 16, np.int64)
    for bits in all_bits(tensors):
        upper += np.bincount(bits >> 16, minlength=1 << 16)
    if upper[0x7F80:].any():
        raise PoolError("trust_region: gradients that are not finite: an image or the base's weights are out of range")
    high, rank = place(upper, rank)
    lower = np.zeros(1 << 16, np.int64)
    for bits in all_bits(tensors):
        lower += np.bincount(bits[bits >> 16 == high] & 0xFFFF, minlength=1 << 16)
    low, _ = place(lower, rank)
    return float(np.uint32(high << 16 | low).view(np.float32))


def all_bits(tensors: Mapping[str, Tensor]) -> Iterator[np.ndarray]:
    for tensor in tensors.values():
        for stretch in tensor.view(-1).split(STRETCH):
            yield stretch.numpy().view(np.uint32)


def place(counts: np.ndarray, rank: int) -> tuple[int, int]:
    """The bin that the number of a rank (from 0) is in, and its rank there."""
    upto = counts.cumsum()
    bin = int(np.searchsorted(upto, rank, "right"))
    return bin, rank - int(upto[bin] - counts[bin])
