"""Where tensors come from."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import Tensor

from clipfuse.checkpoints.safetensors_file import TensorSpec


@runtime_checkable
class Store(Protocol):
    """Tensors by the names that they are stored under; each is read when it is asked for."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]: ...

    def read(self, name: str) -> Tensor: ...

    def read_into(self, name: str, start: int, room: memoryview) -> bool: ...

    def release(self, name: str) -> None: ...


class MemoryStore:
    """Tensors that are already in memory."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = tensors
        self.specs = {name: TensorSpec(tuple(value.shape), value.dtype) for name, value in tensors.items()}

    def read(self, name: str) -> Tensor:
        return self.tensors[name]

    def read_into(self, name: str, start: int, room: memoryview) -> bool:
        return False

    def release(self, name: str) -> None: ...
