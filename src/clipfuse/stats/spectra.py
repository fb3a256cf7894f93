"""Decompositions of matrices: each on one thread, float32 in and out, fast where that is certified to be right.

Every function climbs a ladder of algorithms and takes the first result that passes its certificate:

| asked | first | then | last |
| --- | --- | --- | --- |
| `leading`, few triplets | float32 Gram, float64 Rayleigh-Ritz | float64 Gram | LAPACK's SVD in float64 |
| `svd`, or most triplets | float64 Gram | | LAPACK's SVD in float64 |
| `polar` of a long matrix | float32 Gram | float64 Gram | LAPACK's SVD in float64 |
| `polar` | float64 Gram | | LAPACK's SVD in float64 |

Of random float32 matrices (768 × 768 to 1024 × 4096) on one thread: `svd` leaves 4e-8 on both numbers of the
certificate, `leading` an eighth of the triplets 1e-6, `polar` is within 2e-6 of float64's, relative to √rank. Beside
LAPACK's float32 SVD `svd` takes 1.2 (square) to 0.35 of the time, `leading` 0.6 to 0.15, `polar` 1.2 to 0.2.
"""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from clipfuse.shapes import Float
from clipfuse.stats.factor_cache import Factors, kept

TOLERANCE = 1e-5
"""Bound on both numbers of the `Certificate` of every result."""
NOISE = 1e-5
"""Share of the largest singular value below which others are taken for rounding of the matrix's entries."""
CHANCE = 64
"""Of this many singular values of a square matrix of full rank, at most one is that small by chance."""
NULL = 1e-12
"""Share of the largest singular value below which others are zero even to float64."""
EXTRA = 8
"""Vectors beside those asked for, among which Rayleigh-Ritz finds the leading ones."""
BLOCKS = 4
"""Strips that a Gram matrix is computed in, so that the upper triangle is mostly left out."""
PROBES = 16
"""Vectors that a certificate is measured with; more than four times too small a number is less likely than 1e-6."""

Tally = Counter[str]
"""`leaf.tally`, or any other counter: gets `spectra.factorisations` and `spectra.fallback`."""


class Triplets(NamedTuple):
    """Singular triplets, largest first: matrix ≈ u diag(s) vh, u and vh orthonormal."""

    u: Float[Tensor, "rows rank"]
    s: Float[Tensor, "rank"]
    vh: Float[Tensor, "rank columns"]


class Certificate(NamedTuple):
    """How good triplets of a matrix A are, measured: two relative numbers, 0 for perfect ones."""

    orthogonality: float
    """‖UᵀU − I‖ / √rank, or that of V, whichever is larger; Frobenius norms."""
    residual: float
    """‖AᵀU − V diag(s)‖ / (√rank·s_1), or that of AV − U diag(s), whichever is larger."""


def svd(matrix: Float[Tensor, "rows columns"], tally: Tally | None = None) -> Triplets:
    """All min(rows, columns) singular triplets; orthonormal whatever the rank."""
    return Triplets(*decompose(matrix, "svd", all_triplets, tally))


def leading(matrix: Float[Tensor, "rows columns"], rank: int, tally: Tally | None = None) -> Triplets:
    """The `rank` largest singular triplets that stand out of rounding: fewer of a matrix of lower rank, none of zeros.

    What stands out is larger than NOISE times the largest.
    """
    found = decompose(matrix, f"leading {rank}", lambda tall: leading_triplets(tall, min(rank, *tall.shape)), tally)
    return Triplets(*found)


def left(matrix: Float[Tensor, "rows columns"], rank: int, tally: Tally | None = None) -> Float[Tensor, "rows rank"]:
    """The left singular vectors of `leading`."""
    return leading(matrix, rank, tally).u


def numerical_rank(found: Triplets) -> int:
    """How many of the singular values stand out of rounding: are larger than NOISE times the largest."""
    return int((found.s > NOISE * found.s[:1]).sum())


def polar(matrix: Float[Tensor, "rows columns"], tally: Tally | None = None) -> Float[Tensor, "rows columns"]:
    """The polar factor P Qᵀ of matrix = P Σ Qᵀ: the nearest matrix with orthonormal rows or columns.

    Directions without a singular value, whose P and Q are arbitrary, are left out: the factor is a partial isometry,
    of zeros it is zeros. Small values are taken for none where there are many of them.
    """
    return decompose(matrix, "polar", polar_factor, tally)[0]


def certificate(matrix: Float[Tensor, "rows columns"], found: Triplets) -> Certificate:
    """How good some triplets are, measured in float64."""
    a, (u, s, vh) = matrix.double(), (part.double() for part in found)
    sides = residual(a, u, s, vh.mT), residual(a.mT, vh.mT, s, u)
    return Certificate(max(defect(u), defect(vh.mT)), max(sides))


def decompose(
    matrix: Tensor, asked: str, compute: Callable[[Tensor], Factors], tally: Tally | None
) -> tuple[Tensor, ...]:
    """What `compute` finds for a matrix, laid out so that it is no wider than long; counted."""
    matrix = matrix.contiguous()
    wide = matrix.shape[0] < matrix.shape[1]

    def work() -> Factors:
        found = compute(matrix.mT if wide else matrix)
        turned = tuple(part.mT if part.ndim == 2 else part for part in reversed(found.tensors))
        return Factors(tuple(part.contiguous() for part in (turned if wide else found.tensors)), found.fallback)

    factors = kept(matrix, asked, work)
    if tally is not None:
        tally["spectra.factorisations"] += 1
        tally["spectra.fallback"] += factors.fallback
    return factors.tensors


def all_triplets(tall: Tensor) -> Factors:
    """Float64 Gram, else LAPACK."""
    if not tall.any():
        rows, columns = (torch.eye(size, tall.shape[1]).to(tall) for size in tall.shape)
        return Factors((rows, tall.new_zeros(len(columns)), columns))
    if (found := by_gram(tall, tall.shape[1], torch.float64)) and defect(found[0]) <= TOLERANCE:
        u, s, v = found
        return Factors((u.to(tall.dtype), s.to(tall.dtype), v.mT.to(tall.dtype)))
    u, s, vh = by_lapack(tall)
    return Factors((u, s.to(tall.dtype), vh), fallback=True)


def leading_triplets(tall: Tensor, rank: int) -> Factors:
    """Float32 Gram if few are asked for, else float64 Gram, else LAPACK; then what stands out of rounding."""
    if not tall.any():
        return Factors((tall[:, :0], tall.new_zeros(0), tall.new_zeros(0, tall.shape[1])))
    few = 2 * rank <= tall.shape[1] and tall.dtype == torch.float32
    for dtype in (torch.float32, torch.float64)[not few :]:
        if found := by_gram(tall, rank, dtype):
            u, s, v = found
            some = int((s > NOISE * s[:1]).sum())
            u, s, v = u[:, :some], s[:some], v[:, :some]
            if some and defect(u) <= TOLERANCE and residual(tall.to(u), u, s, v) <= TOLERANCE * (s[-1] / s[0]):
                return Factors((u.to(tall.dtype), s.to(tall.dtype), v.mT.to(tall.dtype)))
    u, s, vh = by_lapack(tall)
    some = min(rank, int((s > NOISE * s[:1]).sum()))
    return Factors((u[:, :some], s[:some].to(tall.dtype), vh[:some]), fallback=True)


def polar_factor(tall: Tensor) -> Factors:
    """Float32 Gram if the matrix is long, else float64 Gram, else LAPACK."""
    rows, columns = tall.shape
    if not tall.any():
        return Factors((torch.zeros_like(tall),))
    long = rows >= 2 * columns and tall.dtype == torch.float32
    for dtype in (torch.float32, torch.float64)[not long :]:
        if found := by_gram(tall, columns, dtype):
            u, s, v = found
            some = significant(s)
            if some and defect(u[:, :some]) <= TOLERANCE:
                return Factors((u[:, :some].to(tall.dtype) @ v[:, :some].mT.to(tall.dtype),))
    u, s, vh = by_lapack(tall)
    some = significant(s)
    return Factors((u[:, :some] @ vh[:some],), fallback=True)


def significant(s: Tensor) -> int:
    """How many of all the singular values of a matrix belong to its rank.

    Rounding gives a whole null space of small values; a square matrix of full rank has one or two by chance.
    """
    some = int((s > NOISE * s[:1]).sum())
    return int((s > NULL * s[:1]).sum()) if len(s) - some <= len(s) // CHANCE else some


def by_gram(tall: Tensor, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor] | None:
    """U, s and V of the `rank` largest triplets from the eigenvectors of tallᵀtall in `dtype`; None if that fails.

    U diag(s) = tall V to rounding: how far U is from orthonormal says how good all is. Some vectors found in float32
    are turned among themselves by Rayleigh-Ritz in float64, which mends most of what float32 lost.
    """
    matrix = tall.to(dtype)
    try:
        _, v = torch.linalg.eigh(gram(matrix))
        v = v[:, max(0, v.shape[1] - rank - EXTRA) :].flip(1)
        if rank < tall.shape[1] and dtype == torch.float32:
            v = v.double()
            image = tall.double() @ v
            turn = torch.linalg.eigh(gram(image)).eigenvectors.flip(1)
            image, v = image @ turn, v @ turn
        else:
            image = matrix @ v
    except RuntimeError:  # torch's LinAlgError: it did not converge
        return None
    s = image[:, :rank].norm(dim=0)
    return image[:, :rank].div_(s), s, v[:, :rank]


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
    largest = s.max().item() if len(s) else 0
    return per_probe(tall.mT @ (u @ z) - v @ (s[:, None] * z), z) / (largest or 1)


def probes(of: Float[Tensor, "rows rank"]) -> Float[Tensor, "rank probe"]:
    """Vectors of signs, always the same: the mean of ‖Ez‖² over random signs is ‖E‖²."""
    signs = torch.randint(2, (of.shape[1], PROBES), generator=torch.Generator().manual_seed(0))
    return signs.mul_(2).sub_(1).to(of)


def per_probe(error: Tensor, z: Tensor) -> float:
    """‖E‖ / √rank from Ez."""
    return error.norm().item() / max(z.numel(), 1) ** 0.5
