"""`pytorch_model.bin`: torch's own zip format, read with `weights_only=True` and memory-mapped."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.errors import CheckpointError


class TorchFile:
    """A flat state dict in a torch file: `specs` and `read(name)`; tensors are views of the mapped file.

    Raises:
        CheckpointError: not a torch file, holds more than tensors by name, or is in torch's format before 1.6.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            tree = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except pickle.UnpicklingError:
            raise CheckpointError(f"{path}: holds more than tensors; only plain state dicts are read") from None
        except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{path}: is no torch checkpoint that can be mapped, or is truncated ({first})"
            ) from None
        if not isinstance(tree, Mapping) or not all(isinstance(value, Tensor) for value in tree.values()):
            raise CheckpointError(f"{path}: is not a flat state dict (name → tensor)")
        if odd := [name for name, value in tree.items() if not is_plain(value)]:
            raise CheckpointError(f"{path}: {odd[0]!r} is no plain tensor (it is sparse, or lacks values of its own)")
        self.tensors: dict[str, Tensor] = {str(name): value.detach() for name, value in tree.items()}
        self.specs = {name: TensorSpec(tuple(value.shape), value.dtype) for name, value in self.tensors.items()}

    def read(self, name: str) -> Tensor:
        return self.tensors[name]

    def read_into(self, name: str, start: int, room: memoryview) -> bool:
        return False

    def release(self, name: str) -> None:
        """torch owns the mapping; the system takes its pages back by itself."""


def is_plain(tensor: Tensor) -> bool:
    """Dense, and with as many stored values as its shape says: a few bytes must not claim terabytes."""
    dense = tensor.layout is torch.strided and tensor.device.type == "cpu"
    return dense and tensor.nbytes <= tensor.untyped_storage().nbytes()
