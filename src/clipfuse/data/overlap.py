"""Which test images are also in train, to the pixel or nearly.

Hashes of 64 bits do not fit the images of these tasks: a digit on black has large even areas, whose gradient bits are
noise after one re-encoding and the same for every other digit. So what is compared is the grey thumbnail itself,
12 × 12, brought to zero mean and unit norm, which no change of brightness or contrast moves (the measure of Torralba,
Fergus & Freeman, "80 Million Tiny Images", 2008). Every test image is compared with every train image, as a matrix
product, so there are no buckets or candidates that could miss a pair.

It stops at 12 × 12 because finer detail is what JPEG and resizing change most, and is filtered with Lanczos because
block means depend on how 28 or 32 pixels happen to divide by 12. `NEAR` was measured on the tiny suite (32 × 32, 10,347
test images; scripts/overlap_figures.py): no unrelated image is near; the nearest are 0.20 (textures) and 0.27 (digits)
away. Found, in the worst and the median task: copies 10 % smaller or larger 99.6 and 100 %, 5 % brighter 99 and 100 %,
JPEG at quality 60 87 and 99 % (faint and fine patterns drown in it), 1 % cut off at each edge 80 and 99.5 %, but 2 %
cut off at two edges only, a shift by more than half a pixel, 18 and 29 %. Very plain drawings may be near without
being copies, and different colours of equal brightness are: the pairs are worth a look.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clipfuse.cores import available_cores
from clipfuse.data.decode import UNREADABLE, read
from clipfuse.data.splits import Split
from clipfuse.errors import TaskError
from clipfuse.shapes import Bool, Float, Int, UInt8

SIDE = 12
"""Of thumbnails, pixels."""
NEAR = 0.15
"""Distance of thumbnails up to which images are near: between 0 and 2, as of unit vectors; a correlation of 0.989."""
FAINT = 2.0
"""Standard deviation, in grey levels, below which a thumbnail is mostly rounding and noise."""
TESTS, TRAINS = 1024, 8192
"""Images that are compared at a time: 32 MiB of products."""


@dataclass(frozen=True)
class Prints:
    """What is compared of a split's images: 176 bytes each."""

    exact: UInt8[Tensor, "image 32"]
    """sha256 of size and RGB pixels."""
    thumbnails: UInt8[Tensor, "image pixel"]
    """Grey, SIDE × SIDE."""

    @property
    def flat(self) -> Bool[Tensor, "image"]:
        """Images of nearly one shade, which are compared exactly only."""
        return self.thumbnails.float().std(1, correction=0) < FAINT


@dataclass(frozen=True)
class Overlap:
    """Pairs of the same picture, in order of test; each test image has one partner at most, the nearest."""

    exact: list[tuple[int, int]]
    """(test, train) with the same pixels; the first such image of train."""
    near: list[tuple[int, int, float]]
    """(test, train, distance), of test images that are not in train exactly."""
    conflicting: list[tuple[int, int]]
    """Those pairs (test, train) of either kind whose labels differ."""


def take_prints(split: Split, told: Callable[[int], None] = lambda count: None) -> Prints:
    """Decode every image once, on all cores; `told` how many more are done.

    Raises:
        TaskError: an image that cannot be read; it is named.
    """

    def work(row: int) -> tuple[bytes, bytes]:
        raw = read(split, row)
        try:
            image = Image.open(io.BytesIO(raw)).convert("RGB")
        except UNREADABLE:
            raise TaskError(f"{split.task}: {split.label_of(row)}: is not a readable image") from None
        return digest(image), thumbnail(image)

    exact, small = bytearray(), bytearray()
    count = len(split)
    with ThreadPoolExecutor(available_cores()) as threads:
        for start in range(0, count, TRAINS):  # a future for each image would cost more than its prints
            for one, other in threads.map(work, range(start, min(start + TRAINS, count))):
                exact += one
                small += other
                told(1)
    return Prints(
        torch.from_numpy(np.frombuffer(exact, np.uint8).reshape(count, 32)),
        torch.from_numpy(np.frombuffer(small, np.uint8).reshape(count, SIDE * SIDE)),
    )


def digest(image: Image.Image) -> bytes:
    """sha256 of an image's size and pixels; the size tells apart what has the same bytes in another shape."""
    return hashlib.sha256(f"{image.width}x{image.height}\n".encode() + image.tobytes()).digest()


def thumbnail(image: Image.Image) -> bytes:
    """The grey values of the whole image, squeezed to SIDE × SIDE, row by row."""
    return image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS).tobytes()


def overlap(
    train: Prints, test: Prints, train_labels: Sequence[int], test_labels: Sequence[int], distance: float = NEAR
) -> Overlap:
    """Compare every test image with every train image; 26,000 with 73,000 takes seconds and 0.2 GB.

    Args:
        train: From `take_prints`, as `test`.
        test: Whose images are looked for.
        train_labels: One for each image, as `test_labels`.
        test_labels: To tell which pairs disagree.
        distance: Up to which thumbnails count as near, 0 to 2.
    """
    first: dict[bytes, int] = {}
    for row, key in enumerate(train.exact.numpy()):
        first.setdefault(key.tobytes(), row)
    found = [(row, first.get(key.tobytes())) for row, key in enumerate(test.exact.numpy())]
    exact = [(row, partner) for row, partner in found if partner is not None]
    rest = torch.tensor([row for row, partner in found if partner is None], dtype=torch.int64)
    rest = rest[~test.flat[rest]]
    shown = (~train.flat).nonzero().flatten()
    near: list[tuple[int, int, float]] = []
    if len(rest) and len(shown):
        partners, apart = nearest(unit(test.thumbnails[rest]), unit(train.thumbnails[shown]))
        triples = zip(rest.tolist(), shown[partners].tolist(), apart.tolist(), strict=True)
        near = [triple for triple in triples if triple[2] <= distance]
    pairs = sorted([*exact, *((row, partner) for row, partner, _ in near)])
    return Overlap(exact, near, [pair for pair in pairs if test_labels[pair[0]] != train_labels[pair[1]]])


def unit(thumbnails: UInt8[Tensor, "image pixel"]) -> Float[Tensor, "image pixel"]:
    """Zero mean and unit norm, float32; none may be of one shade."""
    found = thumbnails.float()
    return torch.nn.functional.normalize(found.sub_(found.mean(1, keepdim=True)))


def nearest(
    test: Float[Tensor, "test pixel"], train: Float[Tensor, "train pixel"]
) -> tuple[Int[Tensor, "test"], Float[Tensor, "test"]]:
    """The nearest train row of each test row, and how far it is; rows are unit vectors: |a − b|² = 2 − 2 a·b."""
    best = torch.full((len(test),), -torch.inf)
    partner = torch.zeros(len(test), dtype=torch.int64)
    for start in range(0, len(test), TESTS):
        mine = slice(start, start + TESTS)
        for offset in range(0, len(train), TRAINS):
            product, place = (test[mine] @ train[offset : offset + TRAINS].T).max(1)
            better = product > best[mine]
            best[mine] = best[mine].where(~better, product)
            partner[mine] = partner[mine].where(~better, place + offset)
    # Once more from the difference: 2 − 2 a·b has lost all digits where a and b are nearly equal.
    return partner, (test - train[partner]).norm(dim=1)
