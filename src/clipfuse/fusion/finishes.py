"""Finishes that scale the merged task vector: by depth, as a whole, or by name."""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import Field
from torch import Tensor

from clipfuse.config import Config
from clipfuse.errors import ConfigError
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

    alpha: Annotated[float, Field(examples=[0.5])]
    """Factor of the first block and of tensors outside the blocks."""
    beta: Annotated[float, Field(examples=[1.0])]
    """What the last block's factor has more."""


def count_blocks(view: PoolView, cfg: Config) -> int:
    return 1 + max((int(found[1]) for name in view.specs if (found := BLOCK.match(name))), default=0)


@finish(paper=LINES, grain="element", prepare=count_blocks, sees_experts=False)
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


@finish(paper=EXPO, grain="element", sees_experts=False)
def expo(leaf: Leaf, delta: Float[Tensor, "*shape"], cfg: Expo) -> Float[Tensor, "*shape"]:
    """Extrapolate beyond the merged model (Zheng et al., 2024).

    Δ ← (1 + alpha)·Δ.

    Source: section 2, equation 2.
    """
    return delta * (1 + cfg.alpha)


class Scales(Config):
    """Δ_j ← c_j·Δ_j, c_j by the name of parameter j or by the block that it is in."""

    scales: Annotated[Mapping[str, float] | Sequence[float], Field(examples=[{"encoder.*": 0.5}])]
    """Factors by pattern of names, as in `{encoder.layers.*.mlp.*: 0.5}` (`*`, `?` and `[…]` as in a shell; of
    patterns that match, the last counts), or one for each block, first to last. What is not named has 1."""


def factors_by_name(view: PoolView, cfg: Scales) -> dict[str, float]:
    found = dict.fromkeys(view.specs, 1.0)
    if isinstance(cfg.scales, Mapping):
        for pattern, factor in cfg.scales.items():
            matched = [name for name in found if fnmatchcase(name, pattern)]
            if not matched:
                like = next((name for name in found if BLOCK.match(name)), next(iter(found)))
                raise ConfigError(f"finishes.scales: {pattern!r} matches no parameter; names are as {like}")
            found.update(dict.fromkeys(matched, factor))
        return found
    if len(cfg.scales) != (blocks := count_blocks(view, cfg)):
        raise ConfigError(f"finishes.scales: {len(cfg.scales)} factors for {blocks} blocks")
    return {name: cfg.scales[int(block[1])] if (block := BLOCK.match(name)) else 1.0 for name in found}


@finish(paper=LINES, grain="element", prepare=factors_by_name, sees_experts=False)
def scales(
    leaf: Leaf, delta: Float[Tensor, "*shape"], cfg: Scales, factors: dict[str, float]
) -> Float[Tensor, "*shape"]:
    """Scale the merged task vector by any factors, as LiNeS does by linear ones (Wang et al., 2025).

    Δ_j ← c_j·Δ_j for parameter j, c_j of the last pattern that matches its name or of its block; else 1.

    Raises:
        ConfigError: a pattern that matches nothing, or not one factor a block.

    Source: section 4, with given instead of linear factors.
    """
    return delta * factors[leaf.name]
