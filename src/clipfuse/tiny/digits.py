"""tiny-digits: real scans of handwritten digits, 8x8, enlarged to 32x32 and printed in tinted ink on tinted paper.

The scans are the 1,797 that scikit-learn ships (`load_digits`), the test part of the UCI data set "Optical Recognition
of Handwritten Digits". They stand in the order of that file, and the splits are cut by row, not shuffled.
"""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from numpy.random import Generator
from PIL import Image

from clipfuse.tiny.canvas import SIDE
from clipfuse.tiny.task import Example, TinyTask, source

NAME = "tiny-digits"
SCANS = Path(__file__).parent / "digits.npz"
ROWS = {"train": range(0, 1000), "val": range(1000, 1250), "test": range(1250, 1797)}
FULL = 16
"""A scan's pixel counts the inked dots of a 4x4 block: 0 to 16."""


@cache
def scans() -> tuple[np.ndarray, np.ndarray]:
    """The scans (1797, 8, 8) uint8 in 0..16, and their labels (1797,)."""
    with np.load(SCANS) as packed:
        return packed["scans"], packed["labels"]


def picture(scan: np.ndarray, random: Generator) -> np.ndarray:
    """Print one scan: (8, 8) in 0..16 becomes (32, 32, 3) uint8, in dark ink on light paper."""
    size = int(random.integers(23, 29))
    ink = np.asarray(
        Image.fromarray((scan * (255 / FULL)).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    )
    page = np.zeros((SIDE, SIDE))
    top, left = random.integers(0, SIDE - size + 1, 2)
    page[top : top + size, left : left + size] = ink / 255
    paper, pen = random.uniform(165, 255, 3), random.uniform(0, 90, 3)
    tinted = paper + (pen - paper) * page[..., None] + random.normal(0, random.uniform(0, 9), (SIDE, SIDE, 3))
    return np.clip(np.rint(tinted), 0, 255).astype(np.uint8)


def examples(split: str) -> Iterator[Example]:
    """The scans of a split, in their order."""
    images, labels = scans()
    for row in ROWS[split]:
        yield int(labels[row]), picture(images[row], source(NAME, split, row))


TASK = TinyTask(
    name=NAME,
    classes=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    templates=("a photo of the number {c}.",),
    examples=examples,
    sizes=(len(ROWS["train"]), len(ROWS["val"]), len(ROWS["test"])),
    licence="CC BY 4.0 (UCI optdigits, as shipped with scikit-learn under BSD-3-Clause)",
    paper="E. Alpaydin, C. Kaynak (1998), Optical Recognition of Handwritten Digits, doi:10.24432/C50P49",
)
