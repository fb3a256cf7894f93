"""MetaGPT: task arithmetic whose coefficients follow from the lengths of the task vectors."""

from torch import Tensor

from clipfuse.fusion.blocks import weighted_total
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import DeltaConfig, method
from clipfuse.pool import Leaf, PoolView
from clipfuse.shapes import Float
from clipfuse.stats.norms import squared_norms

METAGPT = Paper(
    "MetaGPT: Merging Large Language Models Using Model Exclusive Task Arithmetic",
    "Zhou, Yuyan and Song, Liang and Wang, Bingning and Chen, Weipeng",
    2024,
    "2406.11385",
    "EMNLP",
)


class MetaGpt(DeltaConfig):
    """Δ = Σ_k w_k τ_k, w_k = ‖τ_k‖² / Σ_j ‖τ_j‖²."""


def shares(view: PoolView, cfg: MetaGpt) -> list[float]:
    squares = squared_norms(view)
    whole = float(squares.sum())
    return (squares / whole).tolist() if whole else [0.0] * len(squares)


@method(paper=METAGPT, grain="element", prepare=shares, passes=1)
def metagpt(leaf: Leaf, cfg: MetaGpt, weights: list[float]) -> Float[Tensor, "*shape"]:
    """Model-exclusive task arithmetic (Zhou et al., 2024).

    Δ = Σ_k w_k τ_k with w_k = ‖τ_k‖² / Σ_j ‖τ_j‖² over the whole model. Two passes: norms, merge.

    Deviations: none; the closed form holds for task vectors that are orthogonal to one another.

    Source: section 4.3, equation 13.
    """
    return weighted_total(leaf.deltas, weights)
