"""Decompositions of matrices: each on one thread, float32 in and out."""

from typing import NamedTuple

import torch
from torch import Tensor

from clipfuse.shapes import Float


class Triplets(NamedTuple):
    """Singular triplets, largest first: matrix ≈ u diag(s) vh."""

    u: Float[Tensor, "rows rank"]
    s: Float[Tensor, "rank"]
    vh: Float[Tensor, "rank columns"]


def svd(matrix: Float[Tensor, "rows columns"]) -> Triplets:
    """All min(rows, columns) singular triplets."""
    return Triplets(*torch.linalg.svd(matrix, full_matrices=False))


def leading(matrix: Float[Tensor, "rows columns"], rank: int) -> Triplets:
    """The `rank` largest singular triplets."""
    found = svd(matrix)
    return Triplets(found.u[:, :rank], found.s[:rank], found.vh[:rank])


def polar(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """The polar factor P Qᵀ of matrix = P Σ Qᵀ: the nearest matrix with orthonormal rows or columns."""
    found = svd(matrix)
    return found.u @ found.vh
