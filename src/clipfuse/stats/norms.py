"""Inner products of task vectors, streamed: float64 sums over the engine's slices, in their order."""

import torch
from torch import Tensor

from clipfuse.pool.leaf import Leaf
from clipfuse.pool.view import PoolView
from clipfuse.shapes import Float


def grams(view: PoolView) -> dict[str, Float[Tensor, "task task"]]:
    """⟨τ_i, τ_j⟩ of every parameter, float64 on the CPU. One pass."""
    found = {name: torch.zeros(len(view.tasks), len(view.tasks), dtype=torch.float64) for name in view.specs}
    for name, part in view.map(lambda leaf: (leaf.name, gram(leaf))):
        found[name] += part
    return found


def gram(leaf: Leaf) -> Float[Tensor, "task task"]:
    """⟨τ_i, τ_j⟩ of a leaf: float32 products of stretches so short that rounding stays below 1e-6, added in float64."""
    rows = leaf.deltas.flatten(1)
    products = [part @ part.T for part in rows.split(STRETCH, 1)]
    return torch.stack(products).double().sum(0).cpu()


STRETCH = 4096
"""Elements that are added up in float32."""


def squared_norms(view: PoolView) -> Float[Tensor, "task"]:
    """‖τ_k‖² over the whole model, float64 on the CPU. One pass."""
    return torch.stack([found.diagonal() for found in grams(view).values()]).sum(0)
