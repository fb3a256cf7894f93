"""The YAML of `type: huggingface_clip_vision`."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from clipfuse.config import Config


class Member(Config):
    """One model of a pool."""

    name: str = Field(min_length=1)
    """What it is called; names that begin and end with `_` are special, `_pretrained_` is the base."""
    path: str = Field(min_length=1)
    """A folder or weights file of this machine, or a hub id: `org/name`, `org/name@revision`."""


class PoolConfig(Config):
    """The YAML of a pool."""

    type: Literal["huggingface_clip_vision"] = "huggingface_clip_vision"
    """The kind of pool."""
    models: Sequence[Member]
    """The models, in order; also accepted as a mapping name → path."""

    @field_validator("models", mode="before")
    @classmethod
    def from_mapping(cls, models: Any) -> Any:
        if not isinstance(models, Mapping):
            return models
        paths = {
            n: m.get("pretrained_model_name_or_path", m) if isinstance(m, Mapping) else m for n, m in models.items()
        }
        return [{"name": name, "path": path} for name, path in paths.items()]

    @model_validator(mode="after")
    def names_are_unique(self) -> "PoolConfig":
        names = [member.name for member in self.models]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"models: the name {min(twice)!r} stands twice")
        return self
