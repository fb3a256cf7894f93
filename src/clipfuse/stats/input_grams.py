"""Gram matrices of what Linear layers are given: XᵀX over all tokens, summed in float64 while batches go by."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

from clipfuse.shapes import Float

STRIPS = 8
"""Strips of rows that a Gram matrix is computed in, each up to its diagonal: 9/16 of all products."""


class Gram:
    """XᵀX of rows that come in batches: float32 products, added up in float64.

    A batch is small enough (some thousand rows) that float32 sums within it lose little.
    """

    def __init__(self, width: int, device: torch.device | str = "cpu"):
        self.total: Float[Tensor, "width width"] = torch.zeros(width, width, dtype=torch.float64, device=device)
        """Only the strips, up to and with the square blocks on the diagonal."""
        self.rows = 0
        self.room = torch.empty(-(-width // STRIPS) * width, device=device)

    @property
    def strips(self) -> list[tuple[int, int]]:
        """First and last-but-one row of each strip; of narrow matrices some are empty."""
        width = len(self.total)
        return list(pairwise(width * strip // STRIPS for strip in range(STRIPS + 1)))

    def clear(self) -> None:
        self.total.zero_()
        self.rows = 0

    def add(self, inputs: Float[Tensor, "*batch width"]) -> None:
        """Count a batch of rows in."""
        rows = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        self.rows += len(rows)
        with torch.autocast(rows.device.type, enabled=False):
            for start, stop in self.strips:
                strip = self.room[: (stop - start) * stop].view(stop - start, stop)
                self.total[start:stop, :stop] += torch.mm(rows[:, start:stop].mT, rows[:, :stop], out=strip)

    def whole(self) -> Float[Tensor, "width width"]:
        """XᵀX, symmetric to the bit; `total` itself, until the next `clear`."""
        for start, stop in self.strips:
            block = self.total[start:stop, start:stop]
            block.copy_(block.tril() + block.tril(-1).mT)
            self.total[:start, start:stop] = self.total[start:stop, :start].mT
        return self.total


def linears_by_input(module: nn.Module, forward: Callable[[], object]) -> tuple[tuple[str, ...], ...]:
    """Names of the Linear layers in `module` that one `forward` uses, those together that are given one tensor.

    A transformer's layer gives (q, k, v), (out), (fc1), (fc2): four Gram matrices for six weights.
    """
    seen: list[tuple[Tensor, list[str]]] = []

    def note(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            for given, names in seen:
                if given is args[0]:
                    names.append(name)
                    return
            seen.append((args[0], [name]))  # held, so that no later tensor can be taken for it

        return hook

    linears = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    handles = [part.register_forward_pre_hook(note(name)) for name, part in linears]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return tuple(tuple(names) for _, names in seen)


@contextmanager
def watched(module: nn.Module, grams: Mapping[str, Gram]) -> Iterator[None]:
    """Inside, whatever the Linear layers of these names are given is counted into their Gram matrices."""

    def counting(gram: Gram) -> Callable[..., None]:
        return lambda _, args: gram.add(args[0])

    handles = [module.get_submodule(name).register_forward_pre_hook(counting(gram)) for name, gram in grams.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
