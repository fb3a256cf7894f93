"""DARE: drop entries of task vectors at random and rescale what is kept."""

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from clipfuse.config import Config
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.random_bits import draws16
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
    depends on (seed, parameter, expert's name, position) alone: not on slicing, threads or the order of experts.

    Source: section 3.2.
    """
    threshold = round(cfg.drop * 65536)
    kept = leaf.deltas.clone()
    for row, task in zip(kept, leaf.tasks, strict=True):
        keep = draws16((leaf.seed, leaf.name, task), leaf.start, leaf.numel) >= threshold
        row.mul_(torch.from_numpy(keep).to(row).view(row.shape))
        leaf.tally[f"dare.kept.{task}"] += int(np.count_nonzero(keep))
        leaf.tally[f"dare.of.{task}"] += leaf.numel
    return kept.div_(1 - threshold / 65536) if cfg.rescale and threshold else kept
