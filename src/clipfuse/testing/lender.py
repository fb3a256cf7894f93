"""Random pictures, labels and heads for the random models: what methods that look at data are tried with."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import torch
from torch import Tensor

from clipfuse.checkpoints.geometry import Geometry
from clipfuse.data import ImageSet, Preprocess, Split
from clipfuse.data.gather import Rows
from clipfuse.data.preprocess import OPENAI_MEAN, OPENAI_STD, picture
from clipfuse.data.withheld import without_labels
from clipfuse.fusion.lent import Lent, Looked
from clipfuse.heads import Head
from clipfuse.order import seed_of
from clipfuse.testing.models import SMALL

CLASSES, EMBED = 4, 24
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class RandomLender:
    """Lends `images` random pictures a split to experts of any name; always the same ones for a name."""

    geometry: Geometry = SMALL
    images: int = 12

    def check(self, experts: Sequence[str], uses: Sequence[str]) -> None:
        """Every expert has a task."""

    def lend(self, experts: Sequence[str], uses: Sequence[str], seed: int, base: str | None = None) -> Lent:
        """Pictures of the declared splits, and labels where they are declared."""
        preprocess = Preprocess(self.geometry.image_size, self.geometry.image_size, OPENAI_MEAN, OPENAI_STD)
        wanted = [name for name in SPLITS if f"{name}_images" in uses]
        rows: dict[tuple[str, str], Rows] = {}
        looked: dict[tuple[str, str], Looked] = {}
        for task in experts:
            for name in wanted:
                images = ImageSet(self.split(task, name), preprocess)
                if f"{name}_labels" not in uses:
                    images = without_labels(images, f"{name}_labels: the method does not declare that it looks at them")
                rows[task, name] = Rows(images)
                seen, count = torch.zeros(self.images, dtype=torch.bool), torch.zeros((), dtype=torch.int64)
                looked[task, name] = Looked(task, f"random {task} {name}", {}, range(self.images), seen, count)
        projection = noise((EMBED, self.geometry.hidden_size), "projection") / self.geometry.hidden_size**0.5
        heads = {task: Head(unit(noise((CLASSES, EMBED), task, "head")), 10.0, "random") for task in experts}
        return Lent(tuple(experts), tuple(uses), heads, projection, preprocess, rows, looked, seed)

    def split(self, task: str, name: str) -> Split:
        """Pictures of noise, PNG, and random labels."""
        side = self.geometry.image_size
        random = torch.Generator().manual_seed(seed_of(task, name))
        pixels = torch.randint(256, (self.images, 3, side, side), generator=random, dtype=torch.uint8)
        labels = torch.randint(CLASSES, (self.images,), generator=random).tolist()
        return Split(task, name, labels, lambda i: encoded(pixels[i]))


def noise(shape: tuple[int, ...], *key: str) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed_of(*key)))


def unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=-1)


def encoded(pixels: Tensor) -> bytes:
    """PNG."""
    file = BytesIO()
    picture(pixels).save(file, "PNG")
    return file.getvalue()
