"""`compare`: two models' predictions on the same images, from the folders of runs and evaluations."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from clipfuse.errors import ConfigError, unknown
from clipfuse.evaluate.paired import AverageComparison, Comparison, Pair, compare, compare_average, holm
from clipfuse.evaluate.record import Record, read_records
from clipfuse.report import Table
from clipfuse.report.published import field_order
from clipfuse.run.records import file_name, place


@dataclass(frozen=True)
class Compared:
    """Models A and B task by task, and on average over tasks."""

    a: str
    b: str
    tasks: dict[str, Comparison]
    adjusted: dict[str, float]
    """p values of the tasks, adjusted for their number (Holm)."""
    average: AverageComparison
    left_out: list[str]
    """What only one of the two was scored on."""


def compare_runs(a: str | Path, b: str | Path, model_a: str | None = None, model_b: str | None = None) -> Compared:
    """Compare a model of one folder with a model of another on all images that both were scored on.

    Args:
        a: Folder of a run, or what `evaluate --out` left.
        b: Another, or the same.
        model_a: Name of the model in `a`'s table; the merged one, or the only one, by default.
        model_b: The same of `b`.

    Raises:
        ConfigError: a folder without records or predictions, an unknown model, or no images in common.
    """
    sides = [find(Path(folder), model) for folder, model in ((a, model_a), (b, model_b))]
    mine, its = sides
    shared = [key for key in mine if key in its]
    if not shared:
        what = ", ".join(f"{task} of {fingerprint[:8]}" for task, fingerprint, _ in list(mine)[:3])
        raise ConfigError(f"{a} and {b}: have no images in common (the first has {what}, …)")
    pairs: dict[str, Pair] = {}
    for key in shared:
        name = mine[key].task + (f" · {done['name']} {done['severity']}" if (done := mine[key].corruption) else "")
        pairs[name] = (right(Path(a), mine[key]), right(Path(b), its[key]))
    order = [name for name in field_order(list(pairs)) if name in pairs]
    found = {name: compare(*pairs[name]) for name in order}
    adjusted = holm([found[name].p for name in order])
    names = [next(iter(side.values())).model for side in sides]
    return Compared(
        *(names[0], names[1], found, dict(zip(order, adjusted, strict=True))),
        compare_average([pairs[name] for name in order]),
        sorted({key[0] for key in mine.keys() ^ its.keys()} - {key[0] for key in shared}),
    )


def find(folder: Path, model: str | None) -> dict[tuple[str, str, str], Record]:
    """A model's records by what must be the same to compare."""
    records = read_records(folder / "records.jsonl")
    names = list(dict.fromkeys(record.model for record in records))
    if model is None:
        merged = list(dict.fromkeys(record.model for record in records if record.role == "merged"))
        only = names if len(names) == 1 else merged
        if len(only) != 1:
            raise ConfigError(
                f"{folder}: holds {len(names)} models ({', '.join(names)}); --model-a or --model-b names one"
            )
        model = only[0]
    if model not in names:
        raise ConfigError(f"{folder}: " + unknown("model", model, names))
    return {place(record): record for record in records if record.model == model}


def right(folder: Path, record: Record) -> np.ndarray:
    """Whether each image's label was predicted."""
    done = record.corruption
    inside = file_name(f"{done['name']} {done['severity']}") if done else ""
    path = folder / "predictions" / file_name(record.model) / inside / f"{file_name(record.task)}.npz"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = arrays["rank"] == 0
    except (OSError, ValueError, KeyError, BadZipFile, zlib.error):
        raise ConfigError(f"{path}: holds no predictions; they are written by run, and by evaluate --out") from None
    if len(found) != record.n or int(found.sum()) != record.correct:
        raise ConfigError(f"{path}: does not belong to the records beside it")
    return found


def comparison_table(found: Compared) -> Table:
    """Differences in percentage points, task by task."""
    rows = []
    for task, one in found.tasks.items():
        rows.append(
            [task, str(one.n), str(one.only_a), str(one.only_b), *points(one.difference, one.interval),
             p_text(one.p), p_text(found.adjusted[task]), f"{100 * one.detectable:.1f}"]
        )  # fmt: skip
    mean = found.average
    rows.append(["average", str(mean.n), "", "", *points(mean.difference, mean.interval), p_text(mean.p), "", ""])
    header = ["task", "n", "only A", "only B", "B − A", "95 %", "p", "p (Holm)", "detectable"]
    notes = [
        f"A: {found.a}. B: {found.b}. Differences in percentage points on the same images; only A, only B: images that "
        "one of them alone is right on.",
        "95 %: paired bootstrap. p: exact McNemar test, of the average a stratified sign-flip test; p (Holm): adjusted "
        "for the number of tasks. detectable: the difference that such a test finds four times in five.",
    ]
    if found.left_out:
        notes.append(f"Left out, as the two were not scored on the same images: {', '.join(found.left_out)}.")
    return Table(header, rows, notes)


def points(difference: float, interval: Sequence[float]) -> tuple[str, str]:
    low, high = (100 * end for end in interval)
    return f"{100 * difference:+.2f}", f"{low:+.2f} to {high:+.2f}"


def p_text(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"
