"""The configuration of whole jobs."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from clipfuse.config import Config

RuleTree = str | Mapping[str, Any]


class MeasureConfig(Config):
    """How models are measured: what every job that scores models takes."""

    seed: int = 0
    """For random edits, carved splits and limits."""
    device: str = "auto"
    """For forward passes: auto, cpu, cuda, cuda:1, mps. A CUDA device that is named also merges."""
    batch_size: int = Field(128, ge=1)
    """Images a forward pass."""
    limit: int | None = Field(None, ge=1)
    """Images a split; None is all."""


class EvaluateConfig(MeasureConfig):
    """Scoring models that are there already."""

    taskpool: Mapping[str, Any]
    """The tasks' YAML."""
    base: str | None = None
    """The CLIP that gives text encoder, projections and processor; found from the models by default."""
    split: str = "test"
    """Split that is scored."""
    dtype: str = "float32"
    """Of the forward passes."""


class RunConfig(MeasureConfig):
    """A whole run: what is merged how, and what that is measured on."""

    modelpool: Mapping[str, Any]
    """The pool's YAML."""
    method: Mapping[str, Any]
    """Name and settings; `scaling_factor` or the setting that the method is affine in may be a list to choose from."""
    edits: Sequence[RuleTree] = ()
    """Done to each task vector first."""
    finishes: Sequence[RuleTree] = ()
    """Done to the merged task vector last."""
    plugins: Sequence[str] = ()
    """Python files with methods, edits and finishes of one's own; they are run."""
    taskpool: Mapping[str, Any]
    """The tasks' YAML."""
    select: Literal["val"] | None = None
    """Split that a list of values is chosen on."""
    baselines: Literal["none", "own", "all"] = "own"
    """What is scored beside the merge: the base on all tasks and each expert on its `own` task, or on `all`."""
    dtype: str | None = None
    """Of the merged weights; the base's by default."""
    memory: int | str | None = None
    """Most bytes that leaves in work may take together, a number or as in 2GB."""
    out: str | None = None
    """Folder of the run; `runs/<time>_<method>` by default."""
    overwrite: bool = False
    """Replace what a run left there before."""
