"""Task vectors that are computed from an adapter's tensors when they are read."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from clipfuse.checkpoints.lora_config import AdapterConfig
from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.checkpoints.store import Store

Place = tuple[Store, str]
"""Where a tensor is, and what it is called there."""

ROWS = 32
"""Rows that are computed at once, whatever part is asked for: so that a part has the bits that it has in the whole."""


def fetch(place: Place) -> Tensor:
    store, name = place
    return store.read(name)


def as_rows(tensor: Tensor) -> Tensor:
    """A weight as (out, all inputs), a vector as one row."""
    return tensor.reshape(1 if tensor.ndim == 1 else len(tensor), -1)


@dataclass(frozen=True)
class Factors:
    """A and B of a module, as stored, and how often B A counts."""

    a: Place
    """(r, in) or, of a convolution, (r, in, k, k)."""
    b: Place
    """(out, r) or (out, r, 1, 1)."""
    scaling: float
    initial: tuple[Place, Place] | None = None
    """A0 and B0 of a layer that is linear around them; its weights are W0 + s (B A0 + B0 (A − A0))."""
    transposed: bool = False
    """Whether the weight is (in, out), as that of an embedding."""

    def pair(self) -> tuple[Tensor, Tensor]:
        """float32 (out, k) and (k, in) whose product is the delta; the first of the two has the scaling."""
        a, b = (as_rows(fetch(place).float()) for place in (self.a, self.b))
        if self.initial:
            a0, b0 = (as_rows(fetch(place).float()) for place in self.initial)
            a, b = (torch.cat([a0, a - a0]), torch.cat([b, b0], dim=1)) if b0.any() else (a0, b)
        return (a.T * self.scaling, b.T) if self.transposed else (b * self.scaling, a)


@dataclass(frozen=True)
class Delta:
    """What is known of one parameter's τ, the sum of:"""

    shape: tuple[int, ...]
    factors: Factors | None = None
    """B A."""
    moved: tuple[Place, Place] | None = None
    """A whole value less that which it had before."""
    added: tuple[Place, float] | None = None
    """The bias of B, and how often it counts."""
    magnitude: tuple[Place, Place] | None = None
    """m (out) and the base's W0 of DoRA, whose weights are m (W0 + B A) / ‖W0 + B A‖, norms by row."""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns that it is computed in."""
        return (1, self.shape[0]) if len(self.shape) == 1 else (self.shape[0], prod(self.shape[1:]))

    def places(self) -> list[Place]:
        """All that it is computed from, but for the base's."""
        own = [self.factors.a, self.factors.b, *(self.factors.initial or ())] if self.factors else []
        return own + [pair[0] for pair in (self.moved, self.added, self.magnitude) if pair]

    def rows(self, first: int, last: int) -> Tensor:
        """τ from row `first` to before `last`, a multiple of ROWS or the end: float32 (rows, columns)."""
        pair = self.factors.pair() if self.factors else None
        blocks = [self.block(slice(start, min(start + ROWS, last)), pair) for start in range(first, last, ROWS)]
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)

    def block(self, rows: slice, pair: tuple[Tensor, Tensor] | None) -> Tensor:
        delta = torch.zeros(rows.stop - rows.start, self.grid[1])
        if pair:
            delta = pair[0][rows] @ pair[1]
        if self.magnitude:
            # as (share − 1) W0 + share · B A: the difference of two weights would lose digits
            m, base = self.magnitude
            weight = as_rows(fetch(self.moved[0] if self.moved else base))[rows].float()
            norm = (weight + delta).double().norm(dim=1, keepdim=True)
            share = fetch(m).reshape(-1, 1)[rows].double() / norm
            delta = (share - 1).float() * weight + share.float() * delta
        if self.moved:
            now, before = (as_rows(fetch(place))[rows].float() for place in self.moved)
            delta = delta + (now - before)
        if self.added:
            delta = delta + as_rows(fetch(self.added[0]))[rows].float() * self.added[1]
        return delta


class LoraStore:
    """τ of each parameter that an adapter changes, by canonical name, computed in float32 whenever it is read."""

    def __init__(self, deltas: Mapping[str, Delta], config: AdapterConfig):
        self.deltas = deltas
        self.config = config
        self.specs = {name: TensorSpec(delta.shape, torch.float32) for name, delta in deltas.items()}

    def read(self, name: str) -> Tensor:
        delta = self.deltas[name]
        return delta.rows(0, delta.grid[0]).reshape(delta.shape)

    def read_into(self, name: str, start: int, room: memoryview) -> bool:
        """Compute the elements from `start` on that `room` has bytes for, into it."""
        delta = self.deltas[name]
        rows, columns = delta.grid
        out = torch.frombuffer(room, dtype=torch.float32)
        first, last = start // columns, -(-(start + len(out)) // columns)
        first, last = first // ROWS * ROWS, min(-(-last // ROWS) * ROWS, rows)
        skipped = start - first * columns
        out.copy_(delta.rows(first, last).reshape(-1)[skipped : skipped + len(out)])
        return True

    def release(self, name: str) -> None:
        for store, stored in self.deltas[name].places():
            store.release(stored)

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """B (out, k) and A (k, in), float32, where τ of a weight (out, in, …) is B @ A; None where it is more."""
        delta = self.deltas[name]
        return None if delta.factors is None or delta.moved or delta.magnitude else delta.factors.pair()
