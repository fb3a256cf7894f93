"""Task pools: the tasks that a run is measured on."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, field_validator

from clipfuse.config import Config


class TaskPoolConfig(Config):
    """The YAML of a task pool."""

    type: Literal["clip_vit_classification"] = "clip_vit_classification"
    """The kind of pool: zero-shot classification with a CLIP's text encoder."""
    tasks: Sequence[str] = Field(min_length=1)
    """Names of tasks, or paths of their YAML files."""
    base: str | None = None
    """The CLIP that gives text encoder, projections and processor; found from the models by default."""

    @field_validator("tasks", mode="before")
    @classmethod
    def names_only(cls, tasks: Any) -> Any:
        """FusionBench lists `{name, dataset}`; the catalogue knows the data set."""
        if isinstance(tasks, Sequence) and not isinstance(tasks, str):
            return [task.get("name") if isinstance(task, Mapping) else task for task in tasks]
        return tasks
