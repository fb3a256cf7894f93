"""A prototype of TSV-M (arXiv:2412.00081), for the tables of the tiny suite until clipfuse has the method."""

from pathlib import Path

import torch
from torch import Tensor

from clipfuse.pool import PRETRAINED, HuggingFaceClipVisionPool
from tiny.shipping import write_expert


def write_tsv(pool: HuggingFaceClipVisionPool, folder: Path) -> None:
    """Write base + the merged task vector as if it were an expert; task arithmetic on it gives every λ."""
    base = pool.load_pretrained_model().state_dict()
    experts = [pool.load_model(name).state_dict() for name in pool.model_names]
    merged = {name: value + combined([expert[name] - value for expert in experts]) for name, value in base.items()}
    named = {f"vision_model.{name.removeprefix('vision_model.')}": value for name, value in merged.items()}
    write_expert(pool.load_model(PRETRAINED).config, named, folder)


def combined(deltas: list[Tensor]) -> Tensor:
    """Of matrices each one's leading 1/K singular vectors, made orthogonal to the others'; of the rest the mean."""
    if deltas[0].ndim != 2:
        return torch.stack(deltas).mean(0)
    rank = max(1, min(deltas[0].shape) // len(deltas))
    parts = [torch.linalg.svd(delta, full_matrices=False) for delta in deltas]
    left = nearest_orthogonal(torch.cat([u[:, :rank] for u, _, _ in parts], 1))
    right = nearest_orthogonal(torch.cat([v[:rank].T for _, _, v in parts], 1))
    return left * torch.cat([s[:rank] for _, s, _ in parts]) @ right.T


def nearest_orthogonal(columns: Tensor) -> Tensor:
    """The matrix with orthonormal columns that is nearest to (rows, columns)."""
    left, _, right = torch.linalg.svd(columns, full_matrices=False)
    return left @ right
