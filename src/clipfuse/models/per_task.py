"""One vision tower with a small module for each task behind it: inference must know the task."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from clipfuse.errors import ModelError, unknown
from clipfuse.models.encoder import VisionEncoder
from clipfuse.shapes import Float

Module = Mapping[str, Tensor]
"""`down` (rank, embed) and `up` (embed, rank), float32."""


def corrected(features: Float[Tensor, "batch embed"], module: Module) -> Float[Tensor, "batch embed"]:
    """f − up·relu(down·f). Without biases it goes by the factor of f, so that features may have any length."""
    return features - (features @ module["down"].T).relu() @ module["up"].T


class PerTaskEncoder:
    """An encoder whose features are corrected by the module of the task that the images are from.

    Args:
        encoder: Of the merged weights, which all tasks share.
        modules: By the tasks' own names; copied.

    Raises:
        ModelError: no modules, or of other names or shapes than `down` (rank, embed) and `up` (embed, rank).
    """

    needs_task_id = True

    def __init__(self, encoder: VisionEncoder, modules: Mapping[str, Module]):
        if not modules:
            raise ModelError("the model has no module for any task")
        self.encoder = encoder
        self.modules = {task: checked(task, module, len(encoder.projection)) for task, module in modules.items()}
        self.base = encoder.base

    @property
    def tasks(self) -> frozenset[str]:
        """The tasks that it can be asked about."""
        return frozenset(self.modules)

    @property
    def bytes(self) -> int:
        """Bytes of the tower's parameters and of every task's module."""
        return self.encoder.bytes + sum(tensor.nbytes for module in self.modules.values() for tensor in module.values())

    @property
    def widest(self) -> int:
        """The tower's."""
        return self.encoder.widest

    def to(self, device: torch.device, dtype: torch.dtype) -> "PerTaskEncoder":
        """Move the tower (in place) and the modules, which stay float32, and return the encoder."""
        self.encoder.to(device, dtype)
        self.modules = {task: {n: t.to(device) for n, t in module.items()} for task, module in self.modules.items()}
        return self

    def identity(self) -> str:
        """sha256 over the tower's identity and all modules."""
        found = hashlib.sha256(self.encoder.identity().encode())
        for task, module in sorted(self.modules.items()):
            for name, tensor in sorted(module.items()):
                found.update(f"{task} {name} {tuple(tensor.shape)}".encode())
                found.update(tensor.cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    @torch.no_grad()
    def features(self, pixels: Float[Tensor, "batch 3 height width"], task: str | None) -> Float[Tensor, "batch embed"]:
        """Raises ModelError for no task, or one that it has no module for."""
        if task is None:
            raise ModelError(f"the model needs to know which task an image is from: {', '.join(sorted(self.modules))}")
        if task not in self.modules:
            raise ModelError(unknown("task", task, self.modules) + "; a model with modules by task knows no others")
        return corrected(self.encoder.features(pixels, None), self.modules[task])


def checked(task: str, module: Module, embed: int) -> dict[str, Tensor]:
    """A copy of a module, float32. Raises ModelError."""
    found = {name: tuple(tensor.shape) for name, tensor in sorted(module.items())}
    rank = found["down"][0] if len(found.get("down", ())) == 2 else 0
    if not rank or found != {"down": (rank, embed), "up": (embed, rank)}:
        raise ModelError(f"{task}: its module is {found}, it takes down (rank, {embed}) and up ({embed}, rank)")
    return {name: tensor.detach().float().clone() for name, tensor in module.items()}
