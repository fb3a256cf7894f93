"""Several processes on one evaluation, as `torchrun` starts them: each scores its share of every block's batches."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from clipfuse.errors import ConfigError


@dataclass(frozen=True)
class Workers:
    """This process among `count`; number 0 is the one that writes and speaks."""

    number: int = 0
    count: int = 1
    state: Any = None
    """accelerate's, where there are several."""

    @property
    def share(self) -> tuple[int, int]:
        return self.number, self.count

    @property
    def first(self) -> bool:
        return self.number == 0

    @property
    def device(self) -> torch.device | None:
        """The device that this process was given, None where there is only one process."""
        return self.state.device if self.state else None

    def first_of_machine(self) -> AbstractContextManager[Any]:
        """Inside, the first process of a machine goes ahead and the others wait for it: they share its cache."""
        return self.state.local_main_process_first() if self.state else nullcontext()

    def gather(self, found: Any) -> list[Any]:
        """What all processes found, in their order, in every process."""
        if not self.state:
            return [found]
        from accelerate.utils import gather_object

        return gather_object([found])


PATIENCE = timedelta(days=1)
"""How long processes wait for the first one, which may be downloading and decoding."""


def find_workers(device: str = "auto", environ: Callable[[str], str | None] = os.environ.get) -> Workers:
    """The processes that `torchrun` (or another launcher that sets WORLD_SIZE and RANK) started.

    Args:
        device: `auto` is a GPU for each where there are some; `cpu` is none.
        environ: Looks up a variable of the environment.

    Raises:
        ConfigError: there are several and they are all to use one device.
    """
    if int(environ("WORLD_SIZE") or 1) == 1:
        return Workers()
    from accelerate import PartialState

    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"device: several processes take auto, cuda or cpu, and share what is there (found {device!r})"
        )
    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), timeout=PATIENCE)
    return Workers(state.process_index, state.num_processes, state)
