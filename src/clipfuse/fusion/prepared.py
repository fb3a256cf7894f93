"""A chain that fits its pool: what the engine works with."""

from dataclasses import dataclass, field
from typing import Any

import torch

from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.fusion.arrivals import Arrived
from clipfuse.fusion.chain import Chain
from clipfuse.fusion.kept import Kept
from clipfuse.fusion.lent import Lent
from clipfuse.pool import ModelPool, PoolView


@dataclass(frozen=True)
class Prepared:
    """A chain that fits its pool, with the state of every step that needs one."""

    chain: Chain
    view: PoolView
    """The pool through the chain's edits."""
    states: tuple[Any, ...]
    """One a step, in the chain's order."""
    lent: Lent | None = None
    """What a method that looks at data was lent."""
    kept: Kept = field(default_factory=Kept)
    """Where its steps go on after an interruption."""
    files: dict[str, str] = field(default_factory=dict)
    """Texts that it leaves beside the weights, by file name; there once it has run."""
    lent_after: Lent | None = None
    """What is lent to what is learned after the merge."""

    @property
    def pool(self) -> ModelPool:
        return self.view.pool

    @property
    def arrived(self) -> Arrived | None:
        """What a continual method has merged."""
        return self.states[len(self.chain.edits)] if self.chain.method.rule.continual else None

    @property
    def data_seen(self) -> list[dict[str, Any]]:
        """The ledger of the images that the method has looked at, or that its settings say were looked at for it."""
        own = getattr(self.chain.method.cfg, "data_seen", ())
        steps = [(self.chain.method, self.lent.ledger if self.lent else own)]
        if self.chain.after and self.lent_after:
            steps.append((self.chain.after, self.lent_after.ledger))
        looked = [{"rule": step.rule.name, **row} for step, rows in steps for row in rows]
        return [*looked, *map(dict, self.chain.chosen_data)]

    def result_specs(self, dtype: torch.dtype | None = None) -> dict[str, TensorSpec]:
        """Shape and dtype of every merged parameter: the base's (or first expert's) unless `dtype` is given."""
        return {name: TensorSpec(spec.shape, dtype or spec.dtype) for name, spec in self.pool.specs.items()}
