"""A label column → label numbers: integers, booleans, and names of classes."""

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from clipfuse.errors import TaskError, unknown
from clipfuse.tasks import Task
from clipfuse.tasks.task import fold

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)


def check_names(task: Task, where: str, feature: Mapping[str, Any] | None) -> None:
    """Compare the names that a data set gives its label numbers with the task's classes.

    Raises:
        TaskError: their number differs.
    """
    names = (feature or {}).get("names")
    if not isinstance(names, list):
        return
    if len(names) != len(task.classes):
        raise TaskError(
            f"{task.name}: {where}: column {task.label_column!r} has {len(names)} classes, the task {len(task.classes)}"
        )
    theirs, ours = [[spoken(str(name)) for name in side] for side in (names, task.classes)]
    if set(theirs) == set(ours) and theirs != ours:
        at = next(i for i, name in enumerate(theirs) if name != ours[i])
        log.warning(
            "%s: %s: label %d is %r there and %r in the task", *(task.name, where, at, names[at], task.classes[at])
        )


def label_numbers(task: Task, column: "pa.ChunkedArray", label_of: Callable[[int], str]) -> list[int]:
    """The column's labels as numbers; names are looked up among the task's classes.

    Raises:
        TaskError: a label is missing, or neither a number nor a class's name; its row is named.
    """
    import pyarrow as pa
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise TaskError(f"{task.name}: {label_of(row)}: has no label in {task.label_column!r}")
    if types.is_integer(kind) or types.is_boolean(kind):
        return column.cast(pa.int64()).to_numpy().tolist()
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return named_labels(task, column.to_pylist(), label_of)
    values = column.to_pylist()
    if not values:
        return []
    row = next((i for i, value in enumerate(values) if value != value), 0)
    found = f" is {values[row]!r}" if isinstance(values[row], float) else ""
    raise TaskError(
        f"{task.name}: {label_of(row)}: {task.label_column!r}{found} in a column of {kind}; "
        "labels are whole numbers, or names of classes"
    )


def named_labels(task: Task, names: list[str], label_of: Callable[[int], str]) -> list[int]:
    """Labels that are given as names of classes; case, `-` and `_` do not count where that leaves no doubt."""
    number = {name: i for i, name in enumerate(task.classes)}
    folded = {spoken(name): i for name, i in number.items()}
    if len(folded) < len(number):
        folded = {}
    found = []
    for row, name in enumerate(names):
        label = number.get(name, folded.get(spoken(name)))
        if label is None:
            raise TaskError(f"{task.name}: {label_of(row)}: " + unknown("class", name, number))
        found.append(label)
    return found


def spoken(name: str) -> str:
    """A class's name for comparison: underscores and dashes are spaces, case does not count."""
    return fold(name).replace("_", " ")
