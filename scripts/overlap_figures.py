"""How many edited copies of the tiny suite's test images `clipfuse audit` finds: the figures of data/overlap.py.

python scripts/overlap_figures.py
"""

import io
from collections.abc import Callable
from statistics import median

import torch
from PIL import Image, ImageEnhance

from clipfuse.data.overlap import NEAR, Prints, nearest, take_prints, unit
from clipfuse.data.splits import Split
from clipfuse.tiny.suite import SUITE

BICUBIC = Image.Resampling.BICUBIC


def jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=60)
    return Image.open(file)


def cut(left: float, right: float) -> Callable[[Image.Image], Image.Image]:
    """Shares of the width and height that are cut off left and top, right and bottom; the rest is stretched."""

    def work(image: Image.Image) -> Image.Image:
        side = image.width
        return image.resize(image.size, BICUBIC, (left * side, left * side, (1 - right) * side, (1 - right) * side))

    return work


EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "10 % smaller": lambda image: image.resize((29, 29), BICUBIC),
    "10 % larger": lambda image: image.resize((35, 35), BICUBIC),
    "5 % brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.05),
    "JPEG of quality 60": jpeg,
    "1 % cut off at each edge": cut(0.01, 0.01),
    "2 % cut off at two edges": cut(0.02, 0.0),
}


def prints(images: list[Image.Image]) -> Prints:
    def read(row: int) -> bytes:
        file = io.BytesIO()
        images[row].save(file, "PNG")
        return file.getvalue()

    return take_prints(Split("tiny", "test", [0] * len(images), read, str))


def main() -> None:
    shares: dict[str, dict[str, float]] = {name: {} for name in EDITS}
    for task in SUITE:
        images = [Image.fromarray(picture) for _, picture in task.examples("test")]
        known = unit(prints(images).thumbnails)
        apart = torch.cdist(known, known).fill_diagonal_(torch.inf)
        print(f"{task.name}: {len(images)} images, the nearest unrelated ones {float(apart.min()):.3f} apart")
        for name, edit in EDITS.items():
            partner, distance = nearest(unit(prints([edit(image) for image in images]).thumbnails), known)
            own = (partner == torch.arange(len(images))) & (distance <= NEAR)
            shares[name][task.name] = 100 * float(own.double().mean())
    for name, found in shares.items():
        worst = min(found, key=lambda task: found[task])
        print(f"{name}: found {found[worst]:.1f} % ({worst}, the worst task), {median(found.values()):.1f} % (median)")


if __name__ == "__main__":
    main()
