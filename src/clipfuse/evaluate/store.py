"""Scores that were measured before: finished ones are not measured again, unfinished ones go on where they stopped.

Everything goes by content: a score's key is the digest of the model's weights, the images, the head, and all settings
that its bits depend on. `<key>.safetensors` is a finished score, the folder `<key>.parts` one that is not.
"""

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from clipfuse.checkpoints.writer import part_of
from clipfuse.evaluate.score import Part, Score


@dataclass(frozen=True)
class ScoreStore:
    """Scores in a folder; any number of processes may use it."""

    folder: Path

    def get(self, key: str) -> Score | None:
        """A finished score, without its model's name; None if there is none, or it is damaged."""
        with suppress(OSError, SafetensorError, KeyError, ValueError, TypeError):
            path = self.folder / f"{key}.safetensors"
            with safe_open(path, "pt") as file:
                facts, names = file.metadata(), list(file.keys())
                columns = {name: file.get_tensor(name) for name in names}
            labels = columns.pop("labels")
            with suppress(OSError):  # a cache that may only be read
                os.utime(path)
            return Score(
                "", facts["task"], columns, labels, int(facts["classes"]), facts["fingerprint"],
                seconds=float(facts["seconds"]), batch_size=int(facts["batch_size"]),
                unreadable=int(facts["unreadable"]), temperature=number(facts["temperature"]),
                fitted=number(facts["fitted"]), reused=True,
            )  # fmt: skip
        return None

    def put(self, key: str, score: Score) -> None:
        """Keep a finished score; its parts go."""
        facts = {
            "task": score.task, "classes": str(score.classes), "fingerprint": score.fingerprint,
            "seconds": repr(score.seconds), "batch_size": str(score.batch_size), "unreadable": str(score.unreadable),
            "temperature": repr(score.temperature), "fitted": repr(score.fitted),
        }  # fmt: skip
        self.write(self.folder / f"{key}.safetensors", {**score.columns, "labels": score.labels}, facts)
        shutil.rmtree(self.folder / f"{key}.parts", ignore_errors=True)

    def parts(self, key: str, share: tuple[int, int]) -> dict[int, Part]:
        """What is there of an unfinished score, by block, of one of the processes that share the work."""
        found = {}
        for path in sorted((self.folder / f"{key}.parts").glob(f"*-{share[0]}of{share[1]}.safetensors")):
            with suppress(OSError, SafetensorError, KeyError, ValueError, TypeError), safe_open(path, "pt") as file:
                facts = file.metadata()
                columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
                labels = columns.pop("labels")
                found[int(path.name.split("-")[0])] = Part(
                    columns, labels, facts["digest"], int(facts["unreadable"]), float(facts["seconds"]),
                    int(facts["batch_size"]),
                )  # fmt: skip
        return found

    def put_part(self, key: str, share: tuple[int, int], number: int, part: Part) -> None:
        """Keep one block of an unfinished score."""
        folder = self.folder / f"{key}.parts"
        facts = {
            "digest": part.digest, "unreadable": str(part.unreadable), "seconds": repr(part.seconds),
            "batch_size": str(part.batch_size),
        }  # fmt: skip
        path = folder / f"{number:05d}-{share[0]}of{share[1]}.safetensors"
        self.write(path, {**part.columns, "labels": part.labels}, facts)

    def write(self, path: Path, tensors: dict[str, torch.Tensor], facts: dict[str, str]) -> None:
        """Whole or not at all; where that is refused, nothing is kept."""
        temporary = part_of(path)
        with suppress(OSError, SafetensorError):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                save_file({name: values.contiguous() for name, values in tensors.items()}, temporary, facts)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)


def number(text: str) -> float | None:
    return None if text == "None" else float(text)
