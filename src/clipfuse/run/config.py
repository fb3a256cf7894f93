"""The configuration of a whole run."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from clipfuse.config import Config

RuleTree = str | Mapping[str, Any]


class RunConfig(Config):
    """A whole run: what is merged how, and what that is measured on."""

    modelpool: Mapping[str, Any]
    """The pool's YAML."""
    method: Mapping[str, Any]
    """Name and settings; `scaling_factor` may be a list to choose from."""
    edits: Sequence[RuleTree] = ()
    """Done to each task vector first."""
    finishes: Sequence[RuleTree] = ()
    """Done to the merged task vector last."""
    taskpool: Mapping[str, Any]
    """The tasks' YAML."""
    select: Literal["val"] | None = None
    """Split that a list of values is chosen on."""
    baselines: Literal["none", "own", "all"] = "own"
    """What is scored beside the merge: the base on all tasks and each expert on its `own` task, or on `all`."""
    seed: int = 0
    """For random edits, carved splits and limits."""
    dtype: str | None = None
    """Of the merged weights; the base's by default."""
    device: str = "auto"
    """For forward passes: auto, cpu, cuda, cuda:1, mps."""
    batch_size: int = Field(128, ge=1)
    """Images a forward pass."""
    limit: int | None = Field(None, ge=1)
    """Images a split; None is all."""
    out: str | None = None
    """Folder of the run; `runs/<time>_<method>` by default."""
    overwrite: bool = False
    """Replace what a run left there before."""
