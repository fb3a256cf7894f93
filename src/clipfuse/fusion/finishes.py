"""Finishes that scale the merged task vector: by depth, or as a whole."""

import re
from typing import Annotated

from pydantic import Field
from torch import Tensor

from clipfuse.config import Config
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import finish
from clipfuse.pool import Leaf, PoolView
from clipfuse.shapes import Float

LINES = Paper(
    "LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging",
    "Wang, Ke and Dimitriadis, Nikolaos and Favero, Alessandro and Ortiz-Jimenez, Guillermo and others",
    2025,
    "2410.17146",
    "ICLR",
)
EXPO = Paper(
    "Weak-to-Strong Extrapolation Expedites Alignment",
    "Zheng, Chujie and Wang, Ziqi and Ji, Heng and Huang, Minlie and Peng, Nanyun",
    2024,
    "2404.16792",
)
BLOCK = re.compile(r"encoder\.layers\.(\d+)\.")


class Lines(Config):
    """Δ_l ← (alpha + beta·l/(L−1))·Δ_l for block l of L; tensors outside the blocks: alpha·Δ."""

    alpha: float
    """Factor of the first block and of tensors outside the blocks."""
    beta: float
    """What the last block's factor has more."""


def count_blocks(view: PoolView, cfg: Lines) -> int:
    return 1 + max((int(found[1]) for name in view.specs if (found := BLOCK.match(name))), default=0)


@finish(paper=LINES, grain="element", prepare=count_blocks)
def lines(leaf: Leaf, delta: Float[Tensor, "*shape"], cfg: Lines, blocks: int) -> Float[Tensor, "*shape"]:
    """Scale the merged task vector linearly with depth (Wang et al., 2025).

    Δ_l ← (alpha + beta·l/(L−1))·Δ_l, l = 0 … L−1; outside the blocks alpha·Δ.

    Source: section 4, equation 2.
    """
    found = BLOCK.match(leaf.name)
    depth = int(found[1]) / (blocks - 1) if found and blocks > 1 else 0.0
    return delta * (cfg.alpha + cfg.beta * depth)


class Expo(Config):
    """Δ ← (1 + alpha)·Δ."""

    alpha: Annotated[float, Field(ge=0)] = 0.1
    """Share by which Δ is extrapolated."""


@finish(paper=EXPO, grain="element")
def expo(leaf: Leaf, delta: Float[Tensor, "*shape"], cfg: Expo) -> Float[Tensor, "*shape"]:
    """Extrapolate beyond the merged model (Zheng et al., 2024).

    Δ ← (1 + alpha)·Δ.

    Source: section 2, equation 2.
    """
    return delta * (1 + cfg.alpha)
