"""Tasks as data: an image classification problem in words, and where its images are."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import model_validator

from clipfuse.config import Config, parse
from clipfuse.config.read import read_yaml
from clipfuse.errors import TaskError, unknown

CATALOG = Path(__file__).parent / "catalog"


class Task(Config):
    """One task. Its images are a hub data set, or an image folder `<split>/<class name>/*.png`."""

    name: str
    """Canonical name; lookup folds case, `-` and `_`."""
    aliases: Sequence[str] = ()
    """Other names that it is found by."""
    classes: Sequence[str]
    """Class names in label order, as they are put into the templates."""
    templates: Sequence[str]
    """Prompts with one `{c}` each, for the class name."""
    hub_dataset: str | None = None
    """`org/name` on the hub."""
    hub_config: str | None = None
    """The data set's configuration there."""
    revision: str | None = None
    """Commit, tag or branch there."""
    folder: str | None = None
    """Image folder, relative to the task's YAML file."""
    splits: Mapping[str, str] = {"train": "train", "test": "test"}
    """Our names of splits → the source's."""
    image_column: str = "image"
    """Column that holds the images."""
    label_column: str = "label"
    """Column that holds the labels."""
    test_images: int | None = None
    """Images in the test split."""
    suites: Sequence[str] = ()
    """Suites that the task belongs to."""
    licence: str | None = None
    """Licence of the images."""
    paper: str | None = None
    """Where the data set was published."""
    note: str | None = None
    """What a reader of its figures should know."""

    @model_validator(mode="after")
    def is_consistent(self) -> "Task":
        if not self.classes:
            raise ValueError("classes: is empty")
        if not self.templates or any(template.count("{c}") != 1 for template in self.templates):
            raise ValueError("templates: takes prompts with one {c} each, as in 'a photo of a {c}.'")
        if (self.hub_dataset is None) == (self.folder is None):
            raise ValueError("takes either hub_dataset or folder")
        return self

    def answers_to(self, name: str) -> bool:
        """Whether `name` means this task: its own name or an alias, folded."""
        return fold(name) in map(fold, (self.name, *self.aliases))

    def prompts(self) -> list[list[str]]:
        """(class, template) prompts."""
        return [[template.replace("{c}", c) for template in self.templates] for c in self.classes]


def fold(name: str) -> str:
    """A name for comparison: case, `-` and `_` do not count."""
    return name.lower().replace("-", "_")


@cache
def catalog() -> dict[str, Path]:
    """Names of the shipped tasks → their files."""
    return {path.stem: path for path in sorted(CATALOG.glob("*.yaml"))}


def read_task(path: Path) -> Task:
    """A task from its YAML file, its folder made absolute.

    Raises:
        ConfigError: not a task's YAML.
    """
    tree: dict[str, Any] = read_yaml(path)
    task = parse(Task, tree, str(path))
    if task.folder is None:
        return task
    return task.model_copy(update={"folder": str((path.parent / task.folder).absolute())})


def find_task(name: str, folders: Iterable[Path] = ()) -> Task:
    """A task by name, from the catalogue or from YAML files in `folders`; or by the path of its YAML file.

    Raises:
        TaskError: with the nearest known name.
        ConfigError: its YAML is not a task's.
    """
    if name.endswith((".yaml", ".yml")):
        return read_task(Path(name).expanduser())
    known = {**catalog(), **{path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}}
    path = {fold(stem): path for stem, path in known.items()}.get(fold(name))
    if path is None:
        for task in map(read_task, known.values()):
            if task.answers_to(name):
                return task
        raise TaskError(unknown("task", name, known) + "; a path to a task's YAML file will do as well")
    return read_task(path)
