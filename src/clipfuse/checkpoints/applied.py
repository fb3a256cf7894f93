"""A delta-native checkpoint applied to its base: full weights, still lazy."""

from collections.abc import Mapping

from torch import Tensor

from clipfuse.checkpoints.checkpoint import Checkpoint
from clipfuse.checkpoints.names import PROJECTION
from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.checkpoints.store import Store


class AppliedStore:
    """θ0 + τ by canonical name, rounded once to the base's dtype; the base's own tensors where τ has none."""

    def __init__(self, base: Checkpoint, delta: Checkpoint):
        self.base, self.delta = base, delta
        self.specs: Mapping[str, TensorSpec] = {name: base.spec(name) for name in base}

    def read(self, name: str) -> Tensor:
        stored = self.base[name]
        return (stored.float() + self.delta[name]).to(stored.dtype) if name in self.delta else stored

    def read_into(self, name: str, start: int, room: memoryview) -> bool:
        return False if name in self.delta else self.base.read_into(name, start, room)

    def release(self, name: str) -> None:
        for checkpoint in (self.base, self.delta):
            if name in checkpoint:
                checkpoint.release(name)


def applied(base: Checkpoint, delta: Checkpoint) -> Checkpoint:
    """The full weights of an expert that is stored as a task vector; one that is not comes back as it is."""
    if not delta.is_delta:
        return delta
    base = base.with_projection() if PROJECTION in delta else base
    store: Store = AppliedStore(base, delta)
    places = {name: (store, name) for name in base}
    return Checkpoint(places, delta.source, (*base.files, *delta.files), projection=base.projection)
