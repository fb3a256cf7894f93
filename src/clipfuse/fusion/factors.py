"""A factor for each expert's task vector, before any rule."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field
from torch import Tensor

from clipfuse.config import Config
from clipfuse.errors import ConfigError, unknown
from clipfuse.fusion.paper import TASK_ARITHMETIC
from clipfuse.fusion.registry import edit
from clipfuse.pool import Leaf, PoolView
from clipfuse.shapes import Float


class Factors(Config):
    """τ_k ← f_k τ_k."""

    factors: Annotated[Mapping[str, float], Field(examples=[{"signs": -0.5}])]
    """f_k by expert's name, 1 for experts that are not named; negative ones forget."""


def factor_row(view: PoolView, cfg: Factors) -> list[float]:
    for name in cfg.factors:
        if name not in view.known:
            raise ConfigError("edits.factors: " + unknown("expert", name, view.known))
    return [cfg.factors.get(task, 1.0) for task in view.tasks]


@edit(paper=TASK_ARITHMETIC, grain="element", prepare=factor_row)
def factors(leaf: Leaf, cfg: Factors, row: list[float]) -> Float[Tensor, "task *shape"]:
    """Scale or negate single task vectors (Ilharco et al., 2023).

    τ_k ← f_k τ_k with f_k = 1 for experts that are not named. One pass.

    Raises:
        ConfigError: a name that is no expert's.

    Source: section 2, with a factor for each task vector.
    """
    return leaf.deltas * leaf.deltas.new_tensor(row).view(-1, *[1] * (leaf.deltas.ndim - 1))
