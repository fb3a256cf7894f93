"""Where an interrupted training goes on: one file, replaced whole."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from clipfuse.checkpoints.writer import check_space, part_of, write_errors
from clipfuse.errors import OutputError

Accuracy = dict[str, Any]
"""What validation found: step, task, n, correct, loss (mean, nats)."""


@dataclass
class Course:
    """What has happened so far."""

    losses: list[float] = field(default_factory=list)
    """Of each step: mean cross-entropy of its batch, nats; of several tasks their sum."""
    val: list[Accuracy] = field(default_factory=list)

    @property
    def steps(self) -> int:
        return len(self.losses)


@dataclass(frozen=True)
class StateFile:
    """The file of one training; `asked` is all that its result depends on."""

    path: Path
    asked: Mapping[str, Any]

    def save(self, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer, course: Course, extra: Any) -> None:
        """Parameters, the optimiser's moments and the course, whole or not at all. Raises OutputError."""
        tensors = {f"parameter {name}": value.detach() for name, value in parameters.items()}
        for name, parameter in parameters.items():
            tensors |= {f"{key} {name}": value for key, value in optimizer.state.get(parameter, {}).items()}
        tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
        facts = {"asked": self.asked, "losses": course.losses, "val": course.val, "extra": extra}
        check_space(self.path.parent, sum(value.nbytes for value in tensors.values()))
        temporary = part_of(self.path)
        try:
            with write_errors(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                save_file(tensors, temporary, {"state": json.dumps(facts)})
                temporary.replace(self.path)
        except SafetensorError as error:
            raise OutputError(f"{self.path}: cannot be written ({error})") from None
        finally:
            temporary.unlink(missing_ok=True)

    def load(self, parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> tuple[Course, Any]:
        """Put back what `save` wrote; nothing has happened yet where there is no file.

        Raises:
            OutputError: it is damaged, or of another training.
        """
        if not self.path.is_file():
            return Course(), None
        facts = self.facts()
        with safe_open(self.path, "pt") as file:
            stored: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        groups: dict[str, dict[str, Tensor]] = {}
        for key, value in stored.items():
            kind, _, name = key.partition(" ")
            groups.setdefault(name, {})[kind] = value
        if groups.keys() != parameters.keys():
            raise OutputError(f"{self.path}: holds other parameters than those in training; delete it to begin anew")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(groups[name].pop("parameter"))
                kept = {key: placed(key, value, parameter) for key, value in groups[name].items()}
                if kept:
                    optimizer.state[parameter] = kept
        return Course(facts["losses"], facts["val"]), facts["extra"]

    def check(self) -> int:
        """Steps that the file knows, 0 without one. Raises OutputError as `load`, before anything expensive."""
        return len(self.facts()["losses"]) if self.path.is_file() else 0

    def clear(self) -> None:
        """Remove the state of another training; this one's stays. Raises OutputError for a stranger's file."""
        if self.path.is_file() and self.difference(self.stored()):
            self.path.unlink()

    def stored(self) -> dict[str, Any]:
        """What the file says of itself. Raises OutputError if it is no state."""
        try:
            with safe_open(self.path, "pt") as file:
                facts = json.loads(file.metadata()["state"])
            _ = facts["asked"], facts["losses"], facts["val"]
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            raise OutputError(
                f"{self.path}: is no state of a fine-tuning, or damaged; delete it to begin anew"
            ) from None
        return facts

    def difference(self, facts: Mapping[str, Any]) -> str | None:
        """Where a state is another training's, in words."""
        return first_difference(json.loads(json.dumps(self.asked)), facts["asked"])

    def facts(self) -> dict[str, Any]:
        """What the file says, if it is of this training. Raises OutputError."""
        facts = self.stored()
        if difference := self.difference(facts):
            raise OutputError(
                f"{self.path}: is the state of another fine-tuning ({difference}); go on with that one, delete the "
                "file, or pass --overwrite"
            )
        return facts


def placed(key: str, value: Tensor, parameter: nn.Parameter) -> Tensor:
    """A part of the optimiser's state where the optimiser wants it; counts of steps stay where they were made."""
    return value if key == "step" and parameter.device.type != "cuda" else value.to(parameter.device)


def first_difference(asked: Any, found: Any, place: str = "") -> str | None:
    """The first place where two trees differ, in words; None if they are equal."""
    if isinstance(asked, Mapping) and isinstance(found, Mapping):
        for key in sorted(asked.keys() | found.keys()):
            if told := first_difference(asked.get(key), found.get(key), f"{place}.{key}" if place else key):
                return told
        return None
    if isinstance(asked, list) and isinstance(found, list) and len(asked) == len(found):
        pairs = (
            (first_difference(mine, its, f"{place}.{i}"))
            for i, (mine, its) in enumerate(zip(asked, found, strict=True))
        )
        return next((told for told in pairs if told), None)
    return None if asked == found else f"{place} is {found!r:.60} there, {asked!r:.60} here"
