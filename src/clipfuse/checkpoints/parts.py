"""Parameters that are stored as part of a larger tensor, or transposed."""

from collections.abc import Mapping

from torch import Tensor

from clipfuse.checkpoints.openclip import Part
from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.checkpoints.store import Store
from clipfuse.errors import CheckpointError

THIRDS = {"q": 0, "k": 1, "v": 2}


class PartStore:
    """One parameter of a store's tensor `stored`: a third of its rows, or its transpose; a view, nothing is copied.

    Raises:
        CheckpointError: the tensor's shape does not fit.
    """

    def __init__(self, store: Store, stored: str, part: Part, where: str):
        self.store, self.stored, self.part = store, stored, part
        whole = store.specs[stored]
        if part == "transposed":
            if len(whole.shape) != 2:
                raise CheckpointError(f"{where}: {stored!r} is {whole.shape}; a projection is a matrix")
            shape = whole.shape[::-1]
        else:
            if not whole.shape or whole.shape[0] % 3:
                raise CheckpointError(f"{where}: {stored!r} is {whole.shape}; query, key and value are a third each")
            shape = (whole.shape[0] // 3, *whole.shape[1:])
        self.specs: Mapping[str, TensorSpec] = {stored: TensorSpec(shape, whole.dtype)}

    def read(self, name: str) -> Tensor:
        whole = self.store.read(self.stored)
        return whole.mT if self.part == "transposed" else whole.chunk(3)[THIRDS[self.part]]

    def read_into(self, name: str, start: int, room: memoryview) -> bool:
        if self.part == "transposed":
            return False
        return self.store.read_into(self.stored, THIRDS[self.part] * self.specs[self.stored].numel + start, room)

    def release(self, name: str) -> None:
        self.store.release(self.stored)
