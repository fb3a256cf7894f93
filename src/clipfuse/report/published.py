"""Published accuracies of the field, to stand beside one's own: `published.csv`, a figure a line, each with its source.

What a method reaches depends on how many tasks were merged, so a figure is only ever shown for a merge of the very
tasks of its suite. The base and the experts do not depend on what is merged.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from clipfuse.checkpoints.locate import hub_ref
from clipfuse.config.presets import SHIPPED
from clipfuse.config.read import read_yaml
from clipfuse.report.formats import DASH
from clipfuse.tasks import find_task, fold

CSV = Path(__file__).with_name("published.csv")

PRETRAINED, INDIVIDUAL = "pretrained", "individual"
"""Keys of the base, and of the experts on their own tasks; a merged model's key is the name of its method, see
`method_key`."""

ON_TEST = ("adamerging_", "concrete_", "wemoe", "e_wemoe")
"""How keys begin whose figures were made by methods that saw the test images."""

BACKBONES: Mapping[str, str] = {
    "clip-vit-base-patch32": "ViT-B/32",
    "clip-vit-base-patch16": "ViT-B/16",
    "clip-vit-large-patch14": "ViT-L/14",
}
"""OpenAI's names of the bases → the papers'. Figures of LoRA experts have backbones of their own."""

TITLES: Mapping[str, str] = {
    "sun397": "SUN397",
    "stanford-cars": "Cars",
    "resisc45": "RESISC45",
    "eurosat": "EuroSAT",
    "svhn": "SVHN",
    "gtsrb": "GTSRB",
    "mnist": "MNIST",
    "dtd": "DTD",
    "oxford_flowers102": "Flowers102",
    "pcam": "PCAM",
    "fer2013": "FER2013",
    "oxford-iiit-pet": "OxfordIIITPet",
    "stl10": "STL10",
    "cifar100": "CIFAR100",
    "cifar10": "CIFAR10",
    "food101": "Food101",
    "fashion_mnist": "FashionMNIST",
    "emnist_letters": "EMNIST",
    "kmnist": "KMNIST",
    "rendered-sst2": "RenderedSST2",
}
"""What the papers' tables call the tasks."""


@dataclass(frozen=True)
class Figure:
    """One published accuracy, a line of `published.csv`."""

    backbone: str
    suite: str
    """The tasks that were merged."""
    method_key: str
    method: str
    """As it was published, with the settings that it names."""
    task: str
    """Canonical name, or `average`."""
    accuracy: float
    """Per cent."""
    source: str


@dataclass(frozen=True)
class PublishedRow:
    """One published model in the columns of a table, per cent; None where nobody published the figure."""

    key: str
    title: str
    suite: str
    accuracies: tuple[float | None, ...]
    average: float | None
    """As published; over other columns than the suite's the mean of the figures, if all are there."""
    source: str

    def cells(self, places: int = 1) -> list[str]:
        """Texts of the tasks' columns and, last, the average's."""
        figures = (*self.accuracies, self.average)
        return [DASH if figure is None else f"{figure:.{places}f}" for figure in figures]


@cache
def figures() -> tuple[Figure, ...]:
    """All published figures, in the order of the file."""
    with CSV.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    return tuple(Figure(accuracy=float(line.pop("accuracy_percent")), **line) for line in lines)


@cache
def suite_tasks(suite: str) -> tuple[str, ...]:
    """Tasks of a shipped suite (TA8, TALL14, TALL20) in the field's order, whatever a user's `./config` calls so."""
    return tuple(read_yaml(SHIPPED / "taskpool" / f"{suite}.yaml")["tasks"])


def column_order() -> tuple[str, ...]:
    """The twenty tasks in the order of the field's tables; every suite is a beginning of it."""
    return suite_tasks("TALL20")


@cache
def field_names() -> dict[str, str]:
    """Folded names and aliases of the field's tasks → canonical names."""
    tasks = [find_task(name) for name in column_order()]
    return {fold(name): task.name for task in tasks for name in (task.name, *task.aliases)}


def canonical(name: str) -> str | None:
    """The field's task that a task or an expert is named after, None if it is none of them."""
    return field_names().get(fold(name))


def field_order(tasks: Sequence[str]) -> list[str]:
    """Tasks in the field's column order; those that are not the field's after them, as given."""
    rank = {name: number for number, name in enumerate(column_order())}
    return sorted(tasks, key=lambda task: rank.get(canonical(task) or "", len(rank)))


def column_title(task: str) -> str:
    """What the papers' tables call a task; the name itself of any other."""
    return TITLES.get(canonical(task) or "", task)


def backbone_of(base: str) -> str | None:
    """The papers' name of a base, from its hub id (`openai/…`) or the folder that a copy lies in; None if unknown."""
    if found := hub_ref(base):
        owner, _, name = found.repo.partition("/")
        return BACKBONES.get(name) if owner == "openai" else None
    return BACKBONES.get(Path(base).name)


def method_key(role: str, recipe: Mapping[str, Any] | None) -> str | None:
    """Key of a record's model; None for methods with edits or finishes, and for models without a recipe.

    Args:
        role: As in a record: base, expert, merged, other.
        recipe: As in a record.
    """
    if recipe is None:
        return {"base": PRETRAINED, "expert": INDIVIDUAL}.get(role)
    if recipe.get("edits") or recipe.get("finishes") or recipe.get("after"):
        return None
    method = recipe["method"]
    if method["name"] == "adamerging":
        return f"adamerging_{method.get('grain', 'layer')}"
    if method["name"] == "concrete":
        then = method.get("then", "none")
        return "concrete_task_arithmetic" if then == "none" else f"concrete_adamerging_{then}"
    return method["name"]


def published_rows(
    backbone: str, tasks: Sequence[str], methods: Sequence[str], *, merged: Sequence[str]
) -> list[PublishedRow]:
    """Published counterparts of a table's models, in the order of `methods`; those without a figure are left out.

    Args:
        backbone: As `backbone_of` names it.
        tasks: The table's columns; a row has a cell for each, in this order.
        methods: Keys: names of methods, `pretrained`, `individual`, `expert_<task>` as in the file.
        merged: Names of the experts that were merged. A method's figures are those of the suite with these very tasks.
    """
    columns = [canonical(task) for task in tasks]
    own = suite_of(merged)
    rows = []
    for key in dict.fromkeys(methods):
        mine = [figure for figure in figures() if (figure.backbone, figure.method_key) == (backbone, key)]
        suites = {figure.suite for figure in mine if figure.suite == own or not depends_on_merged(key)}
        found = [row_of([f for f in mine if f.suite == suite], columns) for suite in suites]
        found.sort(key=lambda row: (row.accuracies.count(None), row.suite != own, len(suite_tasks(row.suite))))
        rows += [row for row in found[:1] if row.accuracies.count(None) < len(columns)]
    return rows


def suite_of(merged: Sequence[str]) -> str | None:
    """The suite with figures whose tasks are the experts' own, one expert a task."""
    names = sorted(canonical(name) or name for name in merged)
    return next((s for s in sorted({f.suite for f in figures()}) if sorted(suite_tasks(s)) == names), None)


def depends_on_merged(key: str) -> bool:
    """Whether a model's figures depend on what was merged; the base's and the experts' do not."""
    return key not in (PRETRAINED, INDIVIDUAL) and not key.startswith("expert_")


def row_of(found: Sequence[Figure], columns: Sequence[str | None]) -> PublishedRow:
    """The row of one model and suite. Of a figure that was published twice the first stands, which has the average."""
    by_task = {figure.task: figure.accuracy for figure in reversed(found)}
    accuracies = tuple(by_task.get(task or "") for task in columns)
    known = [accuracy for accuracy in accuracies if accuracy is not None]
    whole = len(known) == len(columns) > 0
    mean = sum(known) / len(known) if whole else None
    same = whole and sorted(map(str, columns)) == sorted(suite_tasks(found[0].suite))
    average = by_task.get("average", mean) if same else mean
    first = found[0]
    return PublishedRow(first.method_key, first.method, first.suite, accuracies, average, first.source)
