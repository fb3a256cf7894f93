"""Memory that a thread works in: slices as stored are copied there from the files, task vectors are made there.

Copying a slice out of the page cache costs less than mapping its pages, and leaves none to be given back.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from clipfuse.checkpoints.checkpoint import Checkpoint

WIDEST = torch.float64.itemsize


class Room:
    """Room of one thread for slices of up to `size` elements of a pool's models; what lies there is overwritten."""

    def __init__(self, models: Sequence[Checkpoint], experts: int, size: int, device: str):
        self.models = models
        self.deltas = torch.empty(experts, size, device=device)
        """(task, element) float32."""
        self.raw = torch.empty(len(models), size * WIDEST, dtype=torch.uint8)
        self.bytes = [row.numpy().data for row in self.raw]
        self.views: dict[tuple[int, int, torch.dtype], Tensor] = {}

    def read(self, number: int, name: str, start: int, count: int) -> Tensor | None:
        """`count` elements of a parameter of model `number`, from element `start`; None if they are in memory anyway.

        Raises:
            CheckpointError: a file was cut short meanwhile.
        """
        model = self.models[number]
        if name not in model:
            return None
        dtype = model.spec(name).dtype
        if not model.read_into(name, start, self.bytes[number][: count * dtype.itemsize]):
            return None
        place = (number, count, dtype)
        if place not in self.views:
            self.views[place] = self.raw[number, : count * dtype.itemsize].view(dtype)
        return self.views[place]

    def together(self, parts: Sequence[Tensor]) -> Tensor | None:
        """The last of the models' slices as one tensor (model, element), if float32 and read here; else None."""
        first, count = len(self.models) - len(parts), parts[0].numel()
        for number, part in enumerate(parts, first):
            if part is not self.views.get((number, count, torch.float32)):
                return None
        place = (-len(parts), count, torch.float32)
        if place not in self.views:
            self.views[place] = self.raw[first:, : 4 * count].view(torch.float32)
        return self.views[place]
