"""Norms and inner products of task vectors, streamed: float64 sums over the engine's slices, in their order."""

import torch
from torch import Tensor

from clipfuse.pool.leaf import Leaf
from clipfuse.pool.view import PoolView
from clipfuse.shapes import Float

STRETCH = 8192
"""Elements whose float64 copies are held at a time: those of eight experts stay in cache."""


def grams(view: PoolView) -> dict[str, Float[Tensor, "task task"]]:
    """⟨τ_i, τ_j⟩ of every parameter, float64 on the CPU. One pass."""
    found = {name: torch.zeros(len(view.tasks), len(view.tasks), dtype=torch.float64) for name in view.specs}
    for name, part in view.map(lambda leaf: (leaf.name, gram(leaf))):
        found[name] += part
    return found


def gram(leaf: Leaf) -> Float[Tensor, "task task"]:
    """⟨τ_i, τ_j⟩ of a leaf."""
    found = leaf.deltas.new_zeros(len(leaf.tasks), len(leaf.tasks), dtype=torch.float64)
    for part in leaf.deltas.flatten(1).split(STRETCH, 1):
        wide = part.double()
        found.addmm_(wide, wide.T)
    return found.cpu()


def squared_norms(view: PoolView) -> Float[Tensor, "task"]:
    """‖τ_k‖² over the whole model, float64 on the CPU. One pass."""
    found = torch.zeros(len(view.tasks), dtype=torch.float64)
    for part in view.map(squares):
        found += part
    return found


def squares(leaf: Leaf) -> Float[Tensor, "task"]:
    """‖τ_k‖² of a leaf."""
    return torch.stack([row.dot(row) for row in map(Tensor.double, leaf.deltas.flatten(1))]).cpu()
