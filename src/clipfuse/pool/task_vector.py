"""Task vectors as things to calculate with: τ = θ − θ0, and sums, differences and multiples of them."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from clipfuse.checkpoints.checkpoint import Checkpoint
from clipfuse.checkpoints.geometry import Geometry
from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.checkpoints.writer import SafetensorsWriter
from clipfuse.errors import OutputError, PoolError


@dataclass(frozen=True)
class TaskVector:
    """A difference of weights by canonical name, float32."""

    tensors: Mapping[str, Tensor] = field(repr=False)
    geometry: Geometry | None = None

    @classmethod
    def between(cls, base: Checkpoint | None, expert: Checkpoint, geometry: Geometry | None) -> "TaskVector":
        """τ = θ − θ0. Raises PoolError without a base."""
        if base is None:
            raise PoolError("a task vector needs a base; the pool has no _pretrained_ model")
        return cls({name: expert[name].float() - base[name].float() for name in base}, geometry)

    def __add__(self, other: "TaskVector") -> "TaskVector":
        return self.together(other, torch.add)

    def __sub__(self, other: "TaskVector") -> "TaskVector":
        return self.together(other, torch.sub)

    def __mul__(self, factor: float) -> "TaskVector":
        return TaskVector({name: tensor * factor for name, tensor in self.tensors.items()}, self.geometry)

    __rmul__ = __mul__

    def __neg__(self) -> "TaskVector":
        return self * -1.0

    def together(self, other: "TaskVector", operation: Callable[[Tensor, Tensor], Tensor]) -> "TaskVector":
        if self.tensors.keys() != other.tensors.keys():
            odd = min(self.tensors.keys() ^ other.tensors.keys())
            raise PoolError(f"these task vectors are of different models: {odd!r} is in one of them only")
        if len({v.geometry.linearised for v in (self, other) if v.geometry}) > 1:
            raise PoolError("one of these task vectors is a linearised model's and the other is not")
        return TaskVector({n: operation(t, other.tensors[n]) for n, t in self.tensors.items()}, self.geometry)

    def norm(self) -> float:
        """Euclidean norm over all entries, float64."""
        return sum(float(tensor.double().square().sum()) for tensor in self.tensors.values()) ** 0.5

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write as one safetensors file with canonical names. Raises OutputError if it is there already."""
        path = Path(path)
        if path.exists() and not overwrite:
            raise OutputError(f"{path}: exists; pass overwrite=True")
        specs = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in sorted(self.tensors.items())}
        temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            with SafetensorsWriter(temporary, specs, {"kind": "task_vector"}) as writer:
                for name, tensor in self.tensors.items():
                    writer.write(name, tensor)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
