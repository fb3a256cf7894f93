"""The edit of TIES: what trimming and the election of a sign leave of each task vector, for any rule to merge."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from clipfuse.config import Config
from clipfuse.fusion.election import Election, agreeing, hold_election
from clipfuse.fusion.paper import TIES
from clipfuse.fusion.registry import edit
from clipfuse.pool import Leaf, PoolView
from clipfuse.shapes import Float


class TrimElect(Config):
    """τ_i ← τ_i ⊙ [|τ_i| among its largest `keep`] ⊙ [sign τ_i = elected sign]."""

    keep: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of a task vector's entries that trimming keeps, counted over the whole model."""


def call_election(view: PoolView, cfg: TrimElect) -> Election:
    return hold_election(view, cfg.keep)


@edit(paper=TIES, grain="element", prepare=call_election, passes=2)
def ties(leaf: Leaf, cfg: TrimElect, election: Election) -> Float[Tensor, "task *shape"]:
    """Trim, and keep what has the elected sign (Yadav et al., 2023).

    τ_i is trimmed to |τ_i| ≥ its (d − ⌊keep·d⌋)-th smallest magnitude over all d entries of the model (keep = 1 keeps
    everything); the elected sign is sign(Σ_k trimmed τ_k), where that is zero the majority sign of the model; entries
    of the other sign become zero. As in ties_merging, which with `merge=sum` is task_arithmetic after this edit.
    adamerging after this edit is AdaMerging++. Three passes: one for the floors (after a sample), one for the
    majority, one to edit.

    Source: algorithm 1, without its last step.
    """
    sizes, sign = agreeing(leaf.deltas, election)
    return sizes.mul_(sign)
