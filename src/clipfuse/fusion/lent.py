"""What a method that looks at data is lent: images of declared splits, labels only where they are declared, and a
ledger of what it has looked at.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from clipfuse.errors import ConfigError
from clipfuse.order import Order, seed_of
from clipfuse.progress import Stage, silent
from clipfuse.shapes import Float, Int

if TYPE_CHECKING:
    from clipfuse.data import Preprocess
    from clipfuse.data.gather import Rows
    from clipfuse.heads import Head

CPU = torch.device("cpu")
SplitName = Literal["train", "val", "test"]


@dataclass
class Looked:
    """What was looked at of one split of one expert's task."""

    task: str
    """The task's own name."""
    fingerprint: str
    """Of the split's images and labels."""
    chosen: Mapping[str, Any]
    """How the images of the split were chosen, if not all of the source's."""
    usable: Sequence[int]
    """Rows of the images that can be read."""
    rows: Tensor
    """(image,) bool: whether an image was looked at."""
    count: Tensor
    """() int64: looks at images."""
    labelled: Tensor = field(init=False)
    """(image,) bool: whether its label was looked at."""

    def __post_init__(self) -> None:
        self.labelled = torch.zeros_like(self.rows)

    def to_tree(self, expert: str, split: str) -> dict[str, Any]:
        """A row of the ledger."""
        images, looks, labels = int(self.rows.sum()), int(self.count), int(self.labelled.sum())
        told = {"expert": expert, "task": self.task, "split": split, "images": images, "of": len(self.rows)}
        told |= {"labels": labels, "passes": round(looks / max(images, 1), 2), "fingerprint": self.fingerprint}
        return told | ({"chosen": dict(self.chosen)} if self.chosen else {})


class TaskImages:
    """Images of one split of one expert's task; `part` restricts them to some rows."""

    def __init__(self, lent: "Lent", task: str, split: str, part: Sequence[int] | None = None):
        self.lent, self.task, self.split = lent, task, split
        self.source, self.ledger = lent.rows[task, split], lent.looked[task, split]
        self.part = list(self.ledger.usable if part is None else part)
        self.seed = seed_of(lent.seed, self.ledger.task, split)
        self.order = Order(len(self.part), "stream", self.seed)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.part)

    def choice(self, images: int) -> list[int]:
        """Rows of a seeded choice of so many images, without repeats; of all where there are fewer."""
        random = torch.Generator().manual_seed(seed_of(self.seed, "choice"))
        return sorted(self.part[place] for place in torch.randperm(self.count, generator=random)[:images].tolist())

    def rows(self, step: int, batch: int) -> list[int]:
        """Rows of a step's batch, of an endless seeded stream: pass after pass, each in an order of its own."""
        return [self.part[place] for place in self.order.take(step * batch, batch)]

    def held_out(self, share: float) -> tuple["TaskImages", "TaskImages"]:
        """The images without a seeded `share` of them, and that share (at least one image each)."""
        count = min(max(1, int(share * self.count)), self.count - 1)
        if not count:
            raise ConfigError(f"{self.task}: {self.split} has one image only; none can be held out to validate on")
        out = set(TaskImages(self.lent, self.task, self.split, self.part).choice(count))
        rest = [row for row in self.part if row not in out]
        return tuple(TaskImages(self.lent, self.task, self.split, part) for part in (rest, sorted(out)))  # type: ignore[return-value]

    def pixels(self, rows: Sequence[int]) -> Float[Tensor, "row 3 side side"]:
        """Preprocessed images on the device; the ledger counts them."""
        self.ledger.rows[list(rows)] = True
        self.ledger.count += len(rows)
        return self.lent.preprocess.normalise(self.source.pixels(rows, self.lent.device))

    def labels(self, rows: Sequence[int]) -> Int[Tensor, "row"]:
        """Labels on the device, int64. Raises ConfigError unless the method declares that it looks at them."""
        found = self.source.labels[list(rows)].to(self.lent.device)
        self.ledger.labelled[list(rows)] = True
        return found


@dataclass(frozen=True)
class Lent:
    """`run.data`: what a method may look at, by the names of the experts whose tasks it is of."""

    tasks: tuple[str, ...]
    """Experts, in the pool's order."""
    uses: tuple[str, ...]
    """What the method has declared."""
    heads: "Mapping[str, Head]"
    projection: Float[Tensor, "embed width"]
    """The base's."""
    preprocess: "Preprocess"
    rows: "Mapping[tuple[str, str], Rows]" = field(repr=False)
    """(expert, split) → images; without labels where these are not declared."""
    looked: Mapping[tuple[str, str], Looked] = field(repr=False)
    """(expert, split) → the ledger."""
    seed: int = 0
    device: torch.device = CPU
    """Where forward passes are."""
    precision: str = "float32"
    """Of forward passes; parameters and gradients are float32."""
    stage: Stage = silent
    """Shows progress."""

    def images(self, task: str, split: SplitName) -> TaskImages:
        """Images of a split of an expert's task. Raises ConfigError unless the method declares that split."""
        if f"{split}_images" not in self.uses:
            raise ConfigError(f"{split}_images: the method does not declare that it looks at them (its `uses`)")
        return TaskImages(self, task, split)

    def anew(self) -> "Lent":
        """The same with an empty ledger."""
        empty = {
            place: replace(seen, rows=torch.zeros_like(seen.rows), count=torch.zeros_like(seen.count))
            for place, seen in self.looked.items()
        }
        return replace(self, looked=empty)

    @property
    def facts(self) -> dict[str, Any]:
        """All that what a method sees depends on, for the key of a state."""
        heads = {task: head.key for task, head in self.heads.items()}
        splits = [[*place, seen.fingerprint, len(seen.rows), len(seen.usable)] for place, seen in self.looked.items()]
        projection = hashlib.sha256(self.projection.contiguous().numpy().tobytes()).hexdigest()
        made = {"projection": projection, "preprocess": str(self.preprocess)}
        return {"heads": heads, "splits": splits, **made, "seed": self.seed, "on": f"{self.device} {self.precision}"}

    @property
    def ledger(self) -> list[dict[str, Any]]:
        """What was looked at: a row for each split of each task of which anything was."""
        return [seen.to_tree(*place) for place, seen in self.looked.items() if seen.rows.any()]

    @property
    def state(self) -> dict[str, Tensor]:
        """The ledger as tensors, for whoever goes on later."""
        found = {f"looked {task} {split}": seen.rows for (task, split), seen in self.looked.items()}
        found |= {f"labelled {task} {split}": seen.labelled for (task, split), seen in self.looked.items()}
        return found | {f"count {task} {split}": seen.count for (task, split), seen in self.looked.items()}


@runtime_checkable
class Lender(Protocol):
    """Where images come from; opened for a task pool by `clipfuse.open_data`."""

    def check(self, experts: Sequence[str], uses: Sequence[str]) -> None:
        """Raises PoolError for experts that have no task, TaskError for splits that cannot be found."""
        ...

    def lend(self, experts: Sequence[str], uses: Sequence[str], seed: int, base: str | None = None) -> Lent:
        """What a method with these `uses` may look at, for experts of the pool's `base`.

        Raises TaskError for what cannot be found or read.
        """
        ...
