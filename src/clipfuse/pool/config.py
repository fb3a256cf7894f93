"""The YAML of `type: huggingface_clip_vision`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from clipfuse.checkpoints.locate import MODELSCOPE, hub_ref
from clipfuse.config import Config

Platform = Literal["hf", "modelscope"]


class Member(Config):
    """One model of a pool."""

    name: str = Field(min_length=1)
    """What it is called; names that begin and end with `_` are special, `_pretrained_` is the base."""
    path: str = Field(min_length=1)
    """A folder or weights file of this machine, or a hub id: `org/name`, `org/name@revision`."""
    revision: str | None = Field(None, pattern=r"^[\w./-]+$")
    """Commit, tag or branch of a hub id, as behind its `@`."""
    kind: Literal["full", "lora", "linearised"] | None = None
    """What the files hold: all weights, an adapter, an NTK-linearised model; found from them by default."""
    platform: Platform | None = None
    """Hub that the id is of; the pool's by default."""

    @property
    def ref(self) -> str:
        """Path or hub id with the revision behind its `@` and, of ModelScope's, `modelscope://` before it."""
        place = MODELSCOPE if self.platform == "modelscope" and hub_ref(self.path) else ""
        there = self.revision is None or self.path.endswith(f"@{self.revision}")
        return f"{place}{self.path}" if there else f"{place}{self.path}@{self.revision}"

    @model_validator(mode="after")
    def has_one_revision(self) -> "Member":
        if self.revision is None:
            return self
        hub = hub_ref(self.path)
        if hub is None:
            raise ValueError(f"revision: {self.path} is a path of this machine and has none")
        if hub.revision not in (None, self.revision):
            raise ValueError(f"revision: is {self.revision} here and {hub.revision} in {self.path}; give one of them")
        return self


class PoolConfig(Config):
    """The YAML of a pool."""

    type: Literal["huggingface_clip_vision"] = "huggingface_clip_vision"
    """The kind of pool."""
    models: Sequence[Member]
    """The models, in order; also accepted as a mapping name → path, or name → what a member has besides its name."""
    platform: Platform | None = None
    """Hub that the ids are of: Hugging Face's by default."""

    @property
    def members(self) -> dict[str, Member]:
        """The models by name, each with its own platform or the pool's."""
        own = {"platform": self.platform}
        return {member.name: member if member.platform else member.model_copy(update=own) for member in self.models}

    @field_validator("models", mode="before")
    @classmethod
    def from_mapping(cls, models: Any) -> Any:
        if not isinstance(models, Mapping):
            return models
        members = {name: found if isinstance(found, Mapping) else {"path": found} for name, found in models.items()}
        return [{**member, "name": name} for name, member in members.items()]

    @model_validator(mode="after")
    def names_are_unique(self) -> "PoolConfig":
        names = [member.name for member in self.models]
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise ValueError(f"models: the name {min(twice)!r} stands twice")
        return self
