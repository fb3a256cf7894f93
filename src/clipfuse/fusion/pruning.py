"""Edits that keep entries by their magnitude: Model Breadcrumbs and magnitude pruning."""

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from clipfuse.config import Config
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import edit
from clipfuse.pool import Leaf
from clipfuse.shapes import Bool, Float
from clipfuse.stats.ranks import kth_smallest, smallest

BREADCRUMBS = Paper(
    "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks",
    "Davari, MohammadReza and Belilovsky, Eugene",
    2024,
    "2312.06795",
    "ECCV",
)
MAGNITUDE = Paper(
    "Learning both Weights and Connections for Efficient Neural Networks",
    "Han, Song and Pool, Jeff and Tran, John and Dally, William J.",
    2015,
    "1506.02626",
    "NeurIPS",
)
Mask = Callable[[Float[Tensor, "n"]], Bool[Tensor, "n"]]
"""Of a tensor's magnitudes, which entries stay."""


class Breadcrumbs(Config):
    """τ ← τ ⊙ [|τ| among the largest `density` of what is left without the largest `top`], per tensor."""

    density: Annotated[float, Field(gt=0, le=1, examples=[0.5])]
    """Share that is kept of the entries that are not among the largest."""
    top: Annotated[float, Field(ge=0, lt=1, examples=[0.1])]
    """Share of entries, the largest, that is dropped."""


@edit(paper=BREADCRUMBS, grain="leaf")
def breadcrumbs(leaf: Leaf, cfg: Breadcrumbs) -> Float[Tensor, "task *shape"]:
    """Drop the largest and the smallest entries (Davari and Belilovsky, 2024).

    Of a tensor's n entries the ⌊top·n⌋ of largest |τ| become zero; of the m that are left the ⌊density·m⌋ largest
    stay, the others become zero. Of equal entries the later counts as the larger. One pass, two selections a tensor.

    Deviations: in the paper both shares are of all entries of a layer, in its code of the last dimension of each
    tensor; here `density` is of what `top` leaves.

    Source: section 3.
    """
    left = leaf.numel - int(cfg.top * leaf.numel)
    dropped = left - int(cfg.density * left)

    def mask(sizes: Float[Tensor, "n"]) -> Bool[Tensor, "n"]:
        return smallest(sizes, left).logical_xor_(smallest(sizes, dropped))

    return masked(leaf, mask, "breadcrumbs")


class MagnitudePrune(Config):
    """τ ← τ ⊙ [|τ| ≥ its (n − ⌊keep·n⌋)-th smallest magnitude], per tensor."""

    keep: Annotated[float, Field(gt=0, le=1, examples=[0.3])]
    """Share of a tensor's entries that is kept."""


@edit(paper=MAGNITUDE, grain="leaf")
def magnitude_prune(leaf: Leaf, cfg: MagnitudePrune) -> Float[Tensor, "task *shape"]:
    """Drop the smallest entries (Han et al., 2015).

    Entries of a tensor stay where |τ| ≥ its (n − ⌊keep·n⌋)-th smallest of n magnitudes, so ⌊keep·n⌋ + 1 and those
    that equal the last; keep = 1 keeps everything. It is the count of ties_merging, per tensor instead of over the
    model. One pass, one selection a tensor.

    Deviations: FusionBench's magnitude_diff_pruning ranks within each row, and edits the weights of Linear layers only.

    Source: section 3, without retraining.
    """
    k = leaf.numel - int(cfg.keep * leaf.numel)

    def mask(sizes: Float[Tensor, "n"]) -> Bool[Tensor, "n"]:
        return sizes >= (kth_smallest(sizes, k) if k else 0.0)

    return masked(leaf, mask, "magnitude_prune")


def masked(leaf: Leaf, mask: Mask, name: str) -> Float[Tensor, "task *shape"]:
    """Task vectors with the entries that `mask` chooses by their magnitudes; how many is recorded."""
    kept = leaf.deltas.new_empty(leaf.deltas.shape)
    for row, out, task in zip(leaf.deltas, kept, leaf.tasks, strict=True):
        chosen = mask(row.abs().flatten())
        torch.mul(row, chosen.view(row.shape).float(), out=out)
        leaf.tally[f"{name}.kept.{task}"] += int(chosen.count_nonzero())
        leaf.tally[f"{name}.of.{task}"] += leaf.numel
    return kept
