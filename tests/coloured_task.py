"""A task that a very small CLIP can learn, and that CLIP: pictures whose classes are colours."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from random_clip import write_random_clip

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def write_base(folder: Path) -> str:
    """A CLIP of 8-pixel images with random weights; its path."""
    write_random_clip(folder, "smaller")
    return str(folder)


def write_task(folder: Path, name: str = "colours", splits: str = "train val test", count: int = 12) -> str:
    """An image folder of `count` noisy pictures a class and split, and the path of the task's YAML."""
    for split in splits.split():
        for label, (colour, value) in enumerate(COLOURS.items()):
            place = folder / name / split / colour
            place.mkdir(parents=True)
            for number in range(count):
                random = np.random.default_rng([len(split), label, number, len(name)])
                pixels = np.clip(np.array(value) + random.normal(0, 40, (8, 8, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number:03}.png")
    fields = {
        "name": name,
        "folder": name,
        "splits": {split: split for split in splits.split()},
        "templates": ["a {c} picture."],
        "classes": list(COLOURS),
    }
    path = folder / f"{name}.yaml"
    path.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in fields.items()))
    return str(path)
