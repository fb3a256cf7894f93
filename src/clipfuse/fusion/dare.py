"""DARE: drop entries of task vectors at random and rescale what is kept."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from clipfuse.config import Config
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.random_bits import keep_at_random
from clipfuse.fusion.registry import edit
from clipfuse.pool import Leaf
from clipfuse.shapes import Float

DARE = Paper(
    "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch",
    "Yu, Le and Yu, Bowen and Yu, Haiyang and Huang, Fei and Li, Yongbin",
    2024,
    "2311.03099",
    "ICML",
)


class Dare(Config):
    """τ ← τ ⊙ m / (1 − p), m ~ Bernoulli(1 − p)."""

    drop: Annotated[float, Field(ge=0, le=65535 / 65536)] = 0.5
    """Probability with which an entry is dropped; realised as p = round(drop·65536)/65536."""
    rescale: bool = True
    """Divide the kept entries by 1 − p."""


@edit(paper=DARE, grain="element")
def dare(leaf: Leaf, cfg: Dare) -> Float[Tensor, "task *shape"]:
    """Drop and rescale (Yu et al., 2024).

    τ ← τ ⊙ m / (1 − p), p = round(drop·65536)/65536, never the realised share, which is recorded. Which entries go
    depends on (seed, place in the chain, parameter, expert's name, position) alone: not on slicing, threads or the
    order of experts.

    Source: section 3.2.
    """
    drop = round(cfg.drop * 65536)
    kept = leaf.deltas.new_empty(leaf.deltas.shape)
    for row, out, task in zip(leaf.deltas, kept, leaf.tasks, strict=True):
        count = keep_at_random(leaf.stream(task), leaf.start, drop, out.view(-1))
        leaf.tally[f"dare.kept.{task}"] += count
        leaf.tally[f"dare.of.{task}"] += leaf.numel
        out.mul_(row)
    return kept.mul_(65536 / (65536 - drop)) if cfg.rescale and drop else kept
