"""Keep the leading singular directions of each task matrix."""

import logging
from contextlib import suppress
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from clipfuse.config import Config
from clipfuse.fusion.blocks import rank_of
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import Shape, edit
from clipfuse.pool import Leaf, PoolView
from clipfuse.shapes import Float
from clipfuse.stats.spectra import flops, leading

ECKART_YOUNG = Paper(
    "The approximation of one matrix by another of lower rank",
    "Eckart, Carl and Young, Gale",
    1936,
    "",
    "Psychometrika",
)
log = logging.getLogger(__name__)


class Truncate(Config):
    """τ ← U_k diag(σ_1 … σ_k) V_kᵀ of τ = U diag(σ) Vᵀ, per matrix."""

    rank: Annotated[int, Field(ge=1)] | None = None
    """Singular triplets that are kept of each matrix."""
    rank_fraction: Annotated[Annotated[float, Field(gt=0, le=1)] | None, Field(examples=[0.25])] = None
    """Instead of `rank`: the share f of a matrix's r = min(rows, columns) triplets; ⌈f·r⌉ are kept."""

    @model_validator(mode="after")
    def is_one_of_two(self) -> "Truncate":
        if (self.rank is None) == (self.rank_fraction is None):
            raise ValueError("takes exactly one of rank and rank_fraction")
        return self

    def of(self, full: int) -> int:
        """Triplets that are kept of `full`."""
        return rank_of(self.rank_fraction, full) if self.rank_fraction is not None else self.rank or full


def to_tell(view: PoolView, cfg: Truncate) -> list[str]:
    """What to tell, at most one line, as soon as a matrix is met that has fewer triplets than `rank`."""
    shapes = {name: spec.shape for name, spec in view.specs.items() if len(spec.shape) == 2}
    small = [name for name, shape in shapes.items() if min(shape) < (cfg.rank or 0)]
    if not small:
        return []
    rows, columns = shapes[small[0]]
    return [
        f"edits.truncate: rank {cfg.rank} is more than {len(small)} of {len(shapes)} matrices have, which stay whole: "
        f"{small[0]} ({rows}×{columns})" + (", …" if len(small) > 1 else "")
    ]


def work(shape: Shape, experts: int, cfg: Truncate) -> float:
    """A decomposition for each expert."""
    return experts * flops(shape)


@edit(paper=ECKART_YOUNG, grain="matrix", prepare=to_tell, memory=(2.0, 5.0), work=work)
def truncate(leaf: Leaf, cfg: Truncate, untold: list[str]) -> Float[Tensor, "task *shape"]:
    """Best approximation of a lower rank, matrix by matrix (Eckart and Young, 1936).

    τ_k ← its leading singular triplets, `rank` or ⌈rank_fraction·r⌉ of r; what is no matrix stays as it is. A matrix
    that has no more stays whole, and if it has fewer than `rank` that is said once. One pass, an SVD a matrix.

    Source: the paper's theorem; of task vectors as in TSV-Compress (2412.00081).
    """
    if not leaf.is_matrix:
        return leaf.deltas
    full = min(leaf.deltas.shape[1:])
    rank = cfg.of(full)
    if rank >= full:
        if rank > full:
            with suppress(IndexError):  # another thread has told
                log.warning(untold.pop())
        return leaf.deltas
    kept = leaf.deltas.new_empty(leaf.deltas.shape)
    for row, out in zip(leaf.deltas, kept, strict=True):
        u, s, vh = leading(row, rank, leaf.tally)
        torch.mm(u * s, vh, out=out)
    return kept
