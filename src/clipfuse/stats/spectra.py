"""Decompositions of matrices: each on one thread, float32 in and out, fast where that is certified to be right.

Every function climbs a ladder of algorithms and takes the first result that passes its certificate:

| asked | first | then | last |
| --- | --- | --- | --- |
| `leading`, few triplets of many | float32 Gram, float64 Rayleigh-Ritz | float64 Gram | LAPACK's SVD in float64 |
| `svd`, `leading` | float64 Gram | | LAPACK's SVD in float64 |
| `polar` of a long matrix | float32 Gram | float64 Gram | LAPACK's SVD in float64 |
| `polar` | float64 Gram | | LAPACK's SVD in float64 |

Milliseconds of one thread (AVX-512, MKL), an eighth of the triplets for `leading`, beside LAPACK's float32 SVD:

| | 768 × 768 | 3072 × 768 | 768 × 3072 | 1024 × 4096 |
| --- | --- | --- | --- | --- |
| LAPACK | 123 | 303 | 586 | 1794 |
| `leading` | 60 | 98 | 100 | 210 |
| `leading`, s_1 > 30 s_rank | 170 | 255 | 310 | 660 |
| `svd` | 140 | 260 | 260 | 670 |
| `polar`, s_1 < 5 s_r | 145 | 165 | 165 | 430 |
| `polar` | 145 | 420 | 415 | 1065 |
| last rung | 330 | 760 | 740 | 1900 |

Against SVDs in float64, flat to steep spectra, ‖X − X_ref‖ / ‖X_ref‖ was at most (the first three sizes): `leading`
9e-6 for U diag(s) Vᵀ and 2e-5 for U Vᵀ; `svd` 4e-7; `polar` 3e-7, of long matrices 2e-6, and 6e-6 of those of low
rank.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from clipfuse.shapes import Float
from clipfuse.stats.factor_cache import Factors, kept
from clipfuse.stats.gram import by_gram, by_lapack, defect, residual

TOLERANCE = 1e-5
"""Bound on both numbers of a result's certificate: `defect` and `residual`."""
NOISE = 1e-5
"""Share of the largest singular value below which others are taken for rounding of the matrix's entries."""
CHANCE = 64
"""Of this many singular values of a square matrix of full rank, at most one is that small by chance."""
NULL = 1e-12
"""Share of the largest singular value below which others are zero even to float64."""
SMALL = 256
"""Below this many rows or columns float64 costs next to nothing, and no direction is lost among many."""

Tally = Counter[str]
"""`leaf.tally`, or any other counter: gets `spectra.factorisations` and `spectra.fallback`."""


class Triplets(NamedTuple):
    """Singular triplets, largest first: matrix ≈ u diag(s) vh, u and vh orthonormal."""

    u: Float[Tensor, "rows rank"]
    s: Float[Tensor, "rank"]
    vh: Float[Tensor, "rank columns"]


def svd(matrix: Float[Tensor, "rows columns"], tally: Tally | None = None) -> Triplets:
    """All min(rows, columns) singular triplets; orthonormal whatever the rank."""
    return Triplets(*decompose(matrix, "svd", all_triplets, tally))


def leading(matrix: Float[Tensor, "rows columns"], rank: int, tally: Tally | None = None) -> Triplets:
    """The `rank` largest singular triplets that stand out of rounding: fewer of a matrix of lower rank, none of zeros.

    What stands out is larger than NOISE times the largest.
    """
    found = decompose(matrix, f"leading {rank}", lambda tall: leading_triplets(tall, min(rank, *tall.shape)), tally)
    return Triplets(*found)


def numerical_rank(found: Triplets) -> int:
    """How many of the singular values stand out of rounding: are larger than NOISE times the largest."""
    return int((found.s > NOISE * found.s[:1]).sum())


def polar(matrix: Float[Tensor, "rows columns"], tally: Tally | None = None) -> Float[Tensor, "rows columns"]:
    """The polar factor P Qᵀ of matrix = P Σ Qᵀ: the nearest matrix with orthonormal rows or columns.

    Directions without a singular value, whose P and Q are arbitrary, are left out: the factor is a partial isometry,
    of zeros it is zeros. Small values are taken for none where there are many of them.
    """
    return decompose(matrix, "polar", polar_factor, tally)[0]


def flops(shape: tuple[int, ...]) -> float:
    """Of one decomposition of a matrix, about: its Gram matrix, that one's eigenvectors, their images; else 0."""
    return 4.0 * max(shape) * min(shape) ** 2 + 9.0 * min(shape) ** 3 if len(shape) == 2 else 0.0


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
    if not rank or not tall.any():
        return Factors((tall[:, :0], tall.new_zeros(0), tall.new_zeros(0, tall.shape[1])))
    few = max(SMALL, 2 * rank) <= tall.shape[1] and tall.dtype == torch.float32
    for dtype in (torch.float32, torch.float64)[not few :]:
        if found := by_gram(tall, rank, dtype):
            u, s, v = found
            some = int((s > NOISE * s[:1]).sum())
            u, s, v = u[:, :some], s[:some], v[:, :some]
            if some and defect(u) <= TOLERANCE and residual(tall.to(dtype), u, s, v) <= TOLERANCE * (s[-1] / s[0]):
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
