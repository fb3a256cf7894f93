"""What was learned for each task on a merged encoder, beside its weights: `task_parameters.safetensors`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from clipfuse.checkpoints.safetensors_file import SafetensorsFile, TensorSpec
from clipfuse.checkpoints.writer import SafetensorsWriter
from clipfuse.errors import CheckpointError

TASK_TENSORS = "task_parameters.safetensors"
"""Its tensors are called `<task>/<name>`."""

TaskTensors = Mapping[str, Mapping[str, Tensor]]
"""Task, by its own name → name → small tensor."""


def bytes_of(found: TaskTensors) -> int:
    """Of all tensors together."""
    return sum(tensor.nbytes for own in found.values() for tensor in own.values())


def write_task_tensors(folder: Path, recipe: Mapping[str, Any], found: TaskTensors) -> None:
    """Write what a recipe's rule learned, where it learned anything."""
    if not found:
        return
    tensors = {f"{task}/{name}": tensor for task, own in sorted(found.items()) for name, tensor in sorted(own.items())}
    specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    with SafetensorsWriter(folder / TASK_TENSORS, specs, {"kind": recipe["after"]["name"]}) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)


def read_task_tensors(folder: Path, recipe: Mapping[str, Any]) -> TaskTensors:
    """What was learned for each task, nothing where the recipe's kind has nothing.

    Raises:
        CheckpointError: it is missing or damaged: the merged encoder alone is another model.
    """
    if recipe["kind"] != "per_task":
        return {}
    path = folder / TASK_TENSORS
    if not path.is_file():
        raise CheckpointError(f"{folder}: holds no {TASK_TENSORS}, without which its encoder is another model")
    store = SafetensorsFile(path)
    found: dict[str, dict[str, Tensor]] = {}
    for key in store.specs:
        task, slash, name = key.rpartition("/")
        if not slash or not task:
            raise CheckpointError(f"{path}: {key!r} is no tensor of a task, which are called <task>/<name>")
        found.setdefault(task, {})[name] = store.read(key)
    return found
