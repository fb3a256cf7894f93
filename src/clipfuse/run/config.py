"""The configuration of whole jobs."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, field_validator

from clipfuse.config import Config

RuleTree = str | Mapping[str, Any]


class MeasureConfig(Config):
    """How models are measured: what every job that scores models takes."""

    seed: int = Field(0, ge=0)
    """For random edits, carved splits, limits and corruptions."""
    device: str = "auto"
    """For forward passes: auto, cpu, cuda, cuda:1, mps. A CUDA device that is named also merges."""
    batch_size: int | Literal["auto"] = "auto"
    """Images a forward pass; `auto` goes by device and model, and gets smaller where memory runs out."""
    limit: int | None = Field(None, ge=1)
    """Images a split; None is all."""
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    """Of the forward passes; of a lower one the difference from float32 is reported."""
    compile: bool = False
    """Compile vision towers by `torch.compile`: takes a minute first, pays off on a GPU only."""
    image_cache: bool = True
    """Keep decoded images on disk; see `clipfuse cache`."""
    reuse: bool = True
    """Take scores that were measured before, by content, and go on with unfinished ones."""
    unreadable: Literal["error", "skip"] = "error"
    """What becomes of images that cannot be read: an error, or they are left out and counted."""
    calibrate: bool = False
    """Fit each model's temperature on the val split, and report loss and calibration with it too."""
    joint: bool = False
    """Score with all tasks' classes in one head, too: the model is not told the task."""
    corruption: str | Sequence[str] | None = None
    """Corruptions of the test images, one or a list; `all`, and `none` for the clean images beside them."""
    severity: int | Sequence[int] = 3
    """Their severities, 1 to 5."""
    locked: str | None = None
    """A `clipfuse.lock`, or a folder with one: models and data sets are those that it names, or it is an error."""

    @field_validator("batch_size")
    @classmethod
    def at_least_one(cls, size: int | str) -> int | str:
        if isinstance(size, int) and size < 1:
            raise ValueError(f"takes auto, or a number from 1 up (found {size})")
        return size


class EvaluateConfig(MeasureConfig):
    """Scoring models that are there already."""

    taskpool: Mapping[str, Any]
    """The tasks' YAML."""
    base: str | None = None
    """The CLIP that gives text encoder, projections and processor; found from the models by default."""
    split: str = "test"
    """Split that is scored."""


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
    after: RuleTree | None = None
    """Learned for each task on the merged encoder: name and settings."""
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
    published: bool = False
    """Print the published figures of the same base, methods and tasks beside those that were measured."""
    out: str | None = None
    """Folder of the run; `runs/<time>_<method>` by default."""
    overwrite: bool = False
    """Replace what a run left there before."""
