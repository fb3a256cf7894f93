"""The configuration of `finetune`: a recipe's settings, and what is trained from what into where."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from clipfuse.config import parse
from clipfuse.config.presets import load_preset
from clipfuse.errors import ConfigError
from clipfuse.finetune.recipe import Recipe

PUBLISHED = "published"


class FinetuneConfig(Recipe):
    """A fine-tuning; every setting of the recipe may be given beside the others."""

    task: str | Sequence[str] | None = None
    """Name of a task or path of its YAML file, or a list of them; or give `taskpool`."""
    taskpool: Mapping[str, Any] | None = None
    """The tasks' YAML."""
    base: str | None = None
    """The full CLIP that is fine-tuned; the tiny suite's for its own tasks."""
    recipe: str = PUBLISHED
    """Preset that settings come from which are not given, or the path of a YAML file of them."""
    mode: Literal["separate", "joint", "sequential"] = "separate"
    """An expert for each task, one model for all tasks (the sum of their losses), or each from the one before."""
    out: str | None = None
    """Folder of the model, or of a folder for each task; `experts/<base>_<recipe>` by default."""
    overwrite: bool = False
    """Replace what another fine-tuning left there before."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, mps; of several processes each takes its own."""
    validate_every: int = Field(500, ge=0)
    """Steps between validations; 0 validates at the beginning and the end only."""
    val_images: PositiveInt | None = 1000
    """Images of val that are looked at, a seeded choice; null is all."""
    save_minutes: float = Field(5.0, ge=0)
    """Minutes between states that an interrupted training goes on from."""
    max_minutes: PositiveFloat | None = None
    """Stop after that time; the same command goes on."""
    report_to: str | Sequence[str] = ()
    """Trackers that get the curves: tensorboard, trackio, wandb, mlflow."""
    image_cache: bool = True
    """Keep decoded images on disk; see `clipfuse cache`."""
    unreadable: Literal["error", "skip"] = "error"
    """What becomes of images that cannot be read: an error, or they are left out and counted."""
    locked: str | None = None
    """A `clipfuse.lock`, or a folder with one: models and data sets are those that it names, or it is an error."""

    @model_validator(mode="after")
    def fits_together(self) -> "FinetuneConfig":
        if (self.task is None) == (self.taskpool is None):
            raise ValueError("takes either task=gtsrb or taskpool=TA8")
        if self.mode == "sequential" and self.train == "lora":
            raise ValueError("mode: sequential goes on with whole weights; train=lora has none of its own")
        return self

    @model_validator(mode="after")
    def can_skip(self) -> "FinetuneConfig":
        if self.unreadable == "skip" and not self.image_cache:
            raise ValueError("unreadable: skip goes by the image cache; leave out image_cache=false")
        return self

    @property
    def trackers(self) -> list[str]:
        return [self.report_to] if isinstance(self.report_to, str) else list(self.report_to)

    def validation(self) -> dict[str, Any]:
        """What is looked at while training, and how often; and unreadable images, if they are skipped."""
        skipped = {"unreadable": "skip"} if self.unreadable == "skip" else {}
        return {"validate_every": self.validate_every, "val_images": self.val_images, **skipped}

    def settings(self) -> dict[str, Any]:
        """The recipe, as plain data."""
        return Recipe.model_validate({k: getattr(self, k) for k in Recipe.model_fields}).model_dump(mode="json")


def finetune_config(tree: Mapping[str, Any]) -> FinetuneConfig:
    """A tree laid over the preset that its `recipe` names.

    Raises:
        ConfigError: no such preset, or keys and values that `FinetuneConfig` does not take.
    """
    name = tree.get("recipe", PUBLISHED)
    if not isinstance(name, str):
        raise ConfigError(f"recipe: takes a preset's name or a path, as in recipe=published (found {name!r:.60})")
    settings = load_preset("recipe", name)
    if "steps" in tree:
        settings.pop("epochs", None)
    if "epochs" in tree:
        settings.pop("steps", None)
    given = dict(tree)
    for key in ("augment", "epochs"):
        if isinstance(given.get(key), Mapping) and isinstance(settings.get(key), Mapping):
            given[key] = {**settings[key], **given[key]}
    return parse(FinetuneConfig, {**settings, **given}, "finetune")
