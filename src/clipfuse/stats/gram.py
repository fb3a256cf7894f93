"""Triplets of a matrix no wider than long, by its Gram matrix or by LAPACK, and measures of how good they are."""

from itertools import pairwise

import torch
from torch import Tensor

from clipfuse.shapes import Float

EXTRA = 8
"""Vectors beside those asked for, among which Rayleigh-Ritz finds the leading ones."""
BLOCKS = 4
"""Strips that a Gram matrix is computed in, so that the upper triangle is mostly left out."""
PROBES = 16
"""Vectors that a certificate is measured with; more than four times too small a number is less likely than 1e-6."""


def by_gram(tall: Tensor, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor] | None:
    """U, s and V of the `rank` largest triplets from the eigenvectors of tallᵀtall in `dtype`; None if that fails.

    U diag(s) = tall V to rounding: how far U is from orthonormal says how good all is.
    """
    matrix = tall.to(dtype)
    try:
        v = torch.linalg.eigh(gram(matrix)).eigenvectors
        v = v[:, max(0, v.shape[1] - rank - EXTRA) :].flip(1)
        if dtype == torch.float32 and rank < tall.shape[1]:
            image, v = rayleigh_ritz(matrix, v)
        else:
            image = matrix @ v
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
        return None
    s = image[:, :rank].norm(dim=0)
    return image[:, :rank].div_(s), s, v[:, :rank]


def rayleigh_ritz(matrix: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """matrix V and V, float64, turned to the best triplets in the span of V, which are better than float32 made them.

    V is orthonormal to float32 only; a step of Newton-Schulz makes it so to float64, which is what mends them.
    """
    v = v.double()
    v = 1.5 * v - 0.5 * v @ (v.mT @ v)
    image = (matrix @ v.to(matrix)).double()
    turn = torch.linalg.eigh(gram(image)).eigenvectors.flip(1)
    return image @ turn, v @ turn


def by_lapack(tall: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U, s and Vᵀ from LAPACK in float64."""
    u, s, vh = torch.linalg.svd(tall.double(), full_matrices=False)
    return u.to(tall.dtype), s, vh.to(tall.dtype)


def gram(tall: Float[Tensor, "rows columns"]) -> Float[Tensor, "columns columns"]:
    """The lower triangle of tallᵀ tall, which is all that `eigh` reads; what is above it means nothing."""
    columns = tall.shape[1]
    found = tall.new_zeros(columns, columns)
    edges = [columns * block // BLOCKS for block in range(BLOCKS + 1)]
    for start, stop in pairwise(edges):
        torch.mm(tall[:, start:stop].mT, tall[:, :stop], out=found[start:stop, :stop])
    return found


def defect(u: Tensor) -> float:
    """‖uᵀu − I‖ / √rank; NaN where u has one."""
    z = probes(u)
    return per_probe(u.mT @ (u @ z) - z, z)


def residual(tall: Tensor, u: Tensor, s: Tensor, v: Tensor) -> float:
    """‖tallᵀ u − v diag(s)‖ / (√rank·s_1); 0 of zeros."""
    z = probes(u)
    error = (tall.mT @ (u @ z).to(tall)).to(u) - v @ (s[:, None] * z)
    return per_probe(error, z) / (s[:1].sum().item() or 1)


def probes(of: Float[Tensor, "rows rank"]) -> Float[Tensor, "rank probe"]:
    """Vectors of signs, always the same: the mean of ‖Ez‖² over random signs is ‖E‖²."""
    signs = torch.randint(2, (of.shape[1], PROBES), generator=torch.Generator().manual_seed(0))
    return signs.mul_(2).sub_(1).to(of)


def per_probe(error: Tensor, z: Tensor) -> float:
    """‖E‖ / √rank from Ez."""
    return error.norm().item() / max(z.numel(), 1) ** 0.5
