"""Noise lent to methods that look at data, as the image cache lends it: mapped, preprocessed; and a clock in them."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clipfuse.checkpoints.geometry import Geometry
from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.cli.allocator import give_back_large_blocks, keep_large_blocks
from clipfuse.data import Preprocess
from clipfuse.fusion.lent import Lent, Looked
from clipfuse.fusion.sinks import scratch
from clipfuse.heads import Head

if TYPE_CHECKING:
    from clipfuse.data.gather import Rows

CLASSES, SCALE = 100, 100.0
"""Of every head: as many classes as a task of middling size, and the logit_scale of OpenAI's models."""
FILLED = 16
"""Images that are drawn at a time."""


def idle(step: int) -> None:
    """Nothing."""


@dataclass
class Clock:
    """Seconds of a method's steps; between two steps it stands still, and `between` may do what it likes."""

    seconds: list[float] = field(default_factory=list)
    between: Callable[[int], object] = idle

    @contextmanager
    def stage(self, title: str, total: int, unit: str) -> Iterator[Callable[..., None]]:
        """In place of a progress bar, with the allocator told what the command line tells it."""
        began = 0.0

        def told(count: int, on: object = None) -> None:
            nonlocal began
            if count:
                self.seconds.append(time.perf_counter() - began)
                self.between(len(self.seconds) - 1)
            began = time.perf_counter()

        with large_blocks_kept():
            yield told


@contextmanager
def large_blocks_kept() -> Iterator[None]:
    """Inside, freed memory is kept, as the command line has it while forward passes are made."""
    keep_large_blocks()
    try:
        yield
    finally:
        give_back_large_blocks()


@dataclass(frozen=True)
class Noise:
    """What `Rows` is, of noise."""

    values: Tensor
    """(image, 3, side, side) uint8."""
    labels: Tensor

    def pixels(self, rows: Sequence[int], device: torch.device) -> Tensor:
        return self.values[list(rows)].to(device)


@dataclass(frozen=True)
class NoiseLender:
    """Lends the same noise for every task; a head and a projection of the geometry's real sizes."""

    geometry: Geometry
    noise: Noise
    precision: str = "float32"
    clock: Clock = field(default_factory=Clock)

    def check(self, experts: Sequence[str], uses: Sequence[str]) -> None:
        """Every expert has a task."""

    def lend(self, experts: Sequence[str], uses: Sequence[str], seed: int = 0, base: str | None = None) -> Lent:
        """Noise of the declared splits."""
        side, embed = self.geometry.image_size, self.geometry.projection_dim
        splits = [word.removesuffix("_images") for word in uses if word.endswith("_images")]
        places, count = [(task, split) for task in experts for split in splits], len(self.noise.labels)
        looked = {
            place: Looked(
                place[0],
                "noise",
                {},
                range(count),
                torch.zeros(count, dtype=torch.bool),
                torch.zeros((), dtype=torch.int64),
            )
            for place in places
        }
        random = torch.Generator().manual_seed(0)
        projection = torch.randn(embed, self.geometry.hidden_size, generator=random)
        projection /= self.geometry.hidden_size**0.5
        words = {task: normalize(torch.randn(CLASSES, embed, generator=random), dim=-1) for task in experts}
        return Lent(
            tuple(experts),
            tuple(uses),
            {task: Head(weights, SCALE, "noise") for task, weights in words.items()},
            projection,
            Preprocess(side, side),
            {place: cast("Rows", self.noise) for place in places},
            looked,
            seed,
            precision=self.precision,
            stage=self.clock.stage,
        )


@contextmanager
def noise_lender(geometry: Geometry, images: int, precision: str = "float32") -> Iterator[NoiseLender]:
    """A lender of so many images in a temporary mapped file: no anonymous memory, as images in the cache are none."""
    side, random = geometry.image_size, torch.Generator().manual_seed(0)
    with scratch({"pixels": TensorSpec((images, 3, side, side), torch.uint8)}) as tensors:
        for part in tensors["pixels"].split(FILLED):
            part.random_(256, generator=random)
        labels = torch.randint(CLASSES, (images,), generator=random)
        yield NoiseLender(geometry, Noise(tensors["pixels"], labels), precision)
