"""One parameter, or a slice of it, across a pool: what every rule works on."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isfinite

import torch
from torch import Tensor

from clipfuse.errors import PoolError
from clipfuse.shapes import Float


@dataclass(frozen=True)
class Leaf:
    """One parameter across the pool, or a slice of it flattened. Tensors are float32 and made when asked for."""

    name: str
    """Canonical name of the parameter."""
    tasks: tuple[str, ...]
    """Names of the experts, in the pool's order."""
    stored_base: Tensor | None
    """θ0 as stored, or None in a pool without a base."""
    stored_experts: tuple[Tensor, ...]
    """θ_k as stored, one an expert; τ_k of a delta-native one."""
    native: tuple[bool, ...] = ()
    """Whether an expert is stored as its task vector; () is none."""
    untouched: bool = False
    """Whether no expert has anything for this parameter: all are delta-native and lack it, so every τ_k is zero."""
    start: int = 0
    """Offset of the first element in the flattened parameter, elements."""
    seed: int = 0
    """Seed of the run, for random edits."""
    tally: Counter[str] = field(default_factory=Counter)
    """Exact counts that an edit or a rule wants in the record; added up over the model."""
    edits: int = 0
    """How many edits `deltas` have been through."""
    together: Tensor | None = None
    """`stored_experts` as one float32 tensor (task, *shape), where they lie side by side; only the engine gives it."""
    room: Tensor | None = None
    """Memory that `deltas` may be made in, (task, ≥ numel) float32; only the engine lends some."""

    @cached_property
    def base(self) -> Float[Tensor, "*shape"]:
        """θ0. Raises PoolError in a pool without a base."""
        if self.stored_base is None:
            raise PoolError(f"{self.name}: the pool has no _pretrained_ model, so there is no base")
        return self.stored_base.float()

    @cached_property
    def experts(self) -> Float[Tensor, "task *shape"]:
        """θ_k, one row an expert; after edits, and of delta-native experts, θ0 + τ_k."""
        if self.edits or any(self.native):
            return self.base + self.deltas
        if self.together is not None:
            return self.finite(self.together)
        return self.finite(torch.stack([expert.float() for expert in self.stored_experts]))

    @cached_property
    def deltas(self) -> Float[Tensor, "task *shape"]:
        """Task vectors τ_k = θ_k − θ0, one row an expert; of a delta-native expert as stored."""
        like = self.stored_experts[0]
        shape = (len(self.tasks), *like.shape)
        room = like.new_empty(shape, dtype=torch.float32) if self.room is None else self.room
        rows = room if self.room is None else room[:, : self.numel].view(shape)
        if self.together is not None and not any(self.native):
            return self.finite(torch.sub(self.together, self.base, out=rows))
        native = self.native or (False,) * len(rows)
        for row, expert, is_delta in zip(rows, self.stored_experts, native, strict=True):
            if is_delta:
                row.copy_(expert)
            else:
                torch.sub(expert.float(), self.base, out=row)
        return self.finite(rows)

    @property
    def numel(self) -> int:
        """Elements of this leaf."""
        return self.stored_experts[0].numel()

    @property
    def is_matrix(self) -> bool:
        """Whether this is a whole 2-D weight (of a Linear layer, or the position embedding), neither slice nor bias."""
        return self.stored_experts[0].ndim == 2

    @property
    def is_linear(self) -> bool:
        """Whether this is a whole weight of a Linear layer: a matrix, but not the position embedding."""
        return self.is_matrix and not self.name.startswith("embeddings.")

    def stream(self, task: str) -> tuple[object, ...]:
        """What names the random draws for a task vector: each edit of a chain has its own."""
        return (self.seed, self.name, task, *([self.edits] if self.edits else []))

    def with_deltas(self, deltas: Float[Tensor, "task *shape"]) -> "Leaf":
        """The same leaf with edited task vectors; what an edit or a rule sees after an edit."""
        kept = {name: value for name, value in vars(self).items() if name not in ("deltas", "experts")}
        leaf = object.__new__(Leaf)
        vars(leaf).update(kept, deltas=deltas, edits=self.edits + 1, room=None)
        return leaf

    def only(self, rows: Sequence[int]) -> "Leaf":
        """The same leaf with some of the experts, by number."""
        part = replace(
            self,
            tasks=tuple(self.tasks[row] for row in rows),
            stored_experts=tuple(self.stored_experts[row] for row in rows),
            native=tuple(self.native[row] for row in rows) if self.native else (),
            together=None,
            room=None,
            edits=max(self.edits - 1, 0),  # with_deltas counts one
        )
        return part.with_deltas(self.deltas[list(rows)]) if self.edits else part

    def finite(self, rows: Tensor) -> Tensor:
        """`rows`, unless one holds NaN or Inf: then a PoolError that names the model and the tensor."""
        if not isfinite(rows.sum().item()) and not rows.isfinite().all():
            members = zip(("_pretrained_", *self.tasks), (self.stored_base, *self.stored_experts), strict=True)
            for task, stored in members:
                if stored is not None and not stored.isfinite().all():
                    raise PoolError(f"{task}: {self.name}: holds NaN or Inf")
            raise PoolError(f"{self.name}: the difference of an expert and the base overflows float32")
        return rows
