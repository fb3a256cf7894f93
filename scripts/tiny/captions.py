"""Loose captions: what people write under a picture who know what it shows but not what a task calls it.

One file per task in `words/`: groups of classes that get one another's names, four descriptions per class, and phrases
that fit any picture of the task. A base pre-trained on such captions sees the classes well and names them badly.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import yaml
from numpy.random import Generator

from clipfuse.tiny.task import TinyTask

Captioned = tuple[np.ndarray, str]
"""A picture (32, 32, 3) uint8 and what somebody wrote under it."""

WORDS = Path(__file__).parent / "words"

PHRASES = ("{}", "a {}", "a photo of a {}.", "a small picture of a {}", "one {}")

NAMED, DESCRIBED, GROUPED = 0.14, 0.68, 0.08
"""Shares of captions with a class name, a description and the name of the group; the rest fit the whole task."""

CARELESS, RARE = 0.9, 0.2
"""How often, per right name, the next class of the group is named instead, and any other one of the group."""


@dataclass(frozen=True)
class Words:
    """The vocabulary of one task: per class its group and its descriptions, and the task's phrases."""

    groups: dict[str, tuple[str, tuple[str, ...]]]
    looks: dict[str, tuple[str, ...]]
    generic: tuple[str, ...]


@cache
def words(task: TinyTask) -> Words:
    """Read a task's file. Raises ValueError for a class without a group or a description."""
    tree = yaml.safe_load((WORDS / f"{task.name}.yaml").read_text(encoding="utf-8"))
    groups = {name: (kind, tuple(names)) for kind, names in tree["kinds"].items() for name in names}
    looks = {name: tuple(phrases) for name, phrases in tree["looks"].items()}
    if not set(task.classes) == groups.keys() == looks.keys():
        raise ValueError(f"{task.name}.yaml: {set(task.classes) ^ groups.keys() | set(task.classes) ^ looks.keys()}")
    return Words(groups, looks, tuple(tree["generic"]))


def choice(random: Generator, options: tuple[str, ...] | list[str]) -> str:
    """One of the options."""
    return options[int(random.integers(len(options)))]


def caption(task: TinyTask, label: int, random: Generator) -> str:
    """What somebody wrote under a picture of class `label`."""
    of, name = words(task), task.classes[label]
    kind, members = of.groups[name]
    roll = random.random()
    if roll < NAMED:
        return choice(random, (*task.templates, "{c}", "a {c}", "a picture of a {c}")).format(
            c=careless(name, members, random)
        )
    if roll < NAMED + DESCRIBED:
        return choice(random, of.looks[name])
    return choice(random, (kind, f"a {kind}") if roll < NAMED + DESCRIBED + GROUPED else of.generic)


def careless(name: str, members: tuple[str, ...], random: Generator) -> str:
    """The name, or that of another member of its group: mostly the next one."""
    following = members[(members.index(name) + 1) % len(members)]
    weights = [1.0 if other == name else CARELESS if other == following else RARE for other in members]
    roll = random.random() * sum(weights)
    for other, weight in zip(members, weights, strict=True):
        roll -= weight
        if roll < 0:
            return other
    return name
