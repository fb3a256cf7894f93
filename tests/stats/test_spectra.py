"""Decompositions: certified, right where matrices are awkward, and kept by content."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from random_models import random_models
from torch import Tensor

import clipfuse
from clipfuse.stats.factor_cache import keep_factors
from clipfuse.stats.gram import defect, residual
from clipfuse.stats.spectra import Triplets, leading, numerical_rank, polar, svd

SHAPES = [(96, 96), (200, 64), (64, 200), (768, 256)]


def certificate(matrix: Tensor, found: Triplets) -> tuple[float, float]:
    """How far factors are from orthonormal, and how far from fitting the matrix, relative, in float64."""
    a, (u, s, vh) = matrix.double(), (part.double() for part in found)
    return max(defect(u), defect(vh.mT)), max(residual(a, u, s, vh.mT), residual(a.mT, vh.mT, s, u))


def random(rows: int, columns: int, rank: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(rows + columns)
    if rank is None:
        return torch.randn(rows, columns, generator=generator) * 3e-4
    return torch.randn(rows, rank, generator=generator) @ torch.randn(rank, columns, generator=generator)


@pytest.mark.parametrize("shape", SHAPES)
def test_all_triplets(shape: tuple[int, int]):
    matrix = random(*shape)
    found = svd(matrix)
    want = torch.linalg.svdvals(matrix.double())
    torch.testing.assert_close(found.s.double(), want, atol=float(want[0]) * 1e-6, rtol=1e-5)
    assert max(certificate(matrix, found)) < 1e-5
    torch.testing.assert_close((found.u * found.s) @ found.vh, matrix, atol=1e-8, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [8, 2, 1])
def test_leading_triplets(shape: tuple[int, int], share: int):
    matrix, rank = random(*shape), min(shape) // share
    tally: Counter[str] = Counter()
    found = leading(matrix, rank, tally)
    assert tally == {"spectra.factorisations": 1, "spectra.fallback": 0}
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vh[:rank]
    assert ((found.u * found.s) @ found.vh - best).norm() <= 1e-4 * best.norm()


@pytest.mark.parametrize("shape", SHAPES)
def test_polar_factor(shape: tuple[int, int]):
    matrix = random(*shape)
    u, _, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    assert (polar(matrix) - u @ vh).norm() <= 1e-4 * min(shape) ** 0.5


@pytest.mark.parametrize("shape", SHAPES)
def test_matrices_of_low_rank(shape: tuple[int, int]):
    matrix = random(*shape, rank=5)
    assert len(leading(matrix, 20).s) == 5
    whole = svd(matrix)
    assert numerical_rank(whole) == 5
    torch.testing.assert_close(whole.u.mT @ whole.u, torch.eye(min(shape)), atol=1e-4, rtol=0)
    u, _, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    assert (polar(matrix) - u[:, :5] @ vh[:5]).norm() < 1e-3


def test_zeros():
    zeros = torch.zeros(30, 20)
    assert torch.equal(polar(zeros), zeros)
    assert len(leading(zeros, 4).s) == 0
    assert svd(zeros).s.tolist() == [0.0] * 20
    assert svd(zeros).u.isfinite().all()


def test_what_fails_its_certificate_is_computed_safely():
    """A spectrum over ten decades, of which a Gram matrix sees half."""
    u, _ = torch.linalg.qr(random(90, 40).double())
    v, _ = torch.linalg.qr(random(40, 40).double())
    matrix = ((u * torch.logspace(0, -4.5, 40, dtype=torch.float64)) @ v.mT).float()
    tally: Counter[str] = Counter()
    found = leading(matrix, 40, tally)
    assert max(certificate(matrix, found)) < 1e-2
    assert ((found.u * found.s) @ found.vh - matrix).norm() < 1e-4


def test_a_second_run_decomposes_nothing_and_has_the_same_bits(tmp_path: Path):
    models = random_models()
    plain = clipfuse.merge(models, "tsv_merging").tensors
    with keep_factors(tmp_path) as first:
        one = clipfuse.merge(models, "tsv_merging").tensors
    with keep_factors(tmp_path) as second:
        two = clipfuse.merge(models, "tsv_merging").tensors
    assert first.made > 0
    assert second.made == 0
    assert second.reused == first.made + first.reused
    assert all(torch.equal(plain[name], one[name]) and torch.equal(one[name], two[name]) for name in plain)


def test_damaged_and_foreign_files_are_not_used(tmp_path: Path):
    matrix = random(40, 30)
    with keep_factors(tmp_path):
        want = svd(matrix)
    (file,) = tmp_path.glob("*.safetensors")
    raw = bytearray(file.read_bytes())
    raw[-7] ^= 255
    file.write_bytes(raw)
    (tmp_path / "notes.txt").write_text("mine")
    with keep_factors(tmp_path, disk=1) as store:
        found = svd(matrix)
    assert store.made == 1
    assert torch.equal(found.u, want.u)
    assert (tmp_path / "notes.txt").exists()


def test_the_store_is_bounded_and_forgets_what_was_used_longest_ago(tmp_path: Path):
    size = svd(random(40, 30)).u.nbytes * 3
    with keep_factors(tmp_path, memory=0, disk=4 * size):
        for rows in range(40, 60):
            svd(random(rows, 30))
    assert 0 < sum(path.stat().st_size for path in tmp_path.iterdir()) < 6 * size


def test_nobody_can_change_what_is_kept():
    matrix = random(20, 10)
    with keep_factors():
        first = svd(matrix)
        kept = first.u.clone()
        first.u.zero_()
        assert torch.equal(svd(matrix).u, kept)
