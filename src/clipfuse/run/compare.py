"""`compare`: two models' predictions on the same images, from the folders of runs and evaluations."""

import zlib
from collections.abc import Mapping, Sequence
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

Side = Mapping[tuple[str, str, str], Record]
"""A model's records by what must be the same to compare."""


@dataclass(frozen=True)
class Compared:
    """Models A and B row by row (a task, and what was done to its images), and on average over tasks."""

    a: str
    b: str
    folders: tuple[str, str]
    tasks: dict[str, Comparison]
    adjusted: dict[str, float]
    """p values of the rows, adjusted for their number (Holm)."""
    average: AverageComparison
    left_out: list[str]
    """Rows that only one of the two has."""
    unlike: list[str]
    """How the two were scored differently."""


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
    mine, its = find(Path(a), model_a), find(Path(b), model_b)
    shared = [key for key in mine if key in its]
    if not shared:
        raise ConfigError(f"{a} and {b}: were not scored on the same images: {apart(mine, its)}")
    pairs = {row(mine[key]): (right(Path(a), mine[key]), right(Path(b), its[key])) for key in shared}
    order = [name for name in field_order(list(pairs)) if name in pairs]
    found = {name: compare(*pairs[name]) for name in order}
    adjusted = holm([found[name].p for name in order])
    images = {row(mine[key]): key[:2] for key in shared}
    of_images: dict[tuple[str, str], list[Pair]] = {}
    for name in order:
        of_images.setdefault(images[name], []).append(pairs[name])
    return Compared(
        a=next(iter(mine.values())).title,
        b=next(iter(its.values())).title,
        folders=(str(a), str(b)),
        tasks=found,
        adjusted=dict(zip(order, adjusted, strict=True)),
        average=compare_average([over_conditions(several) for several in of_images.values()]),
        left_out=sorted({row(side[key]) for side in (mine, its) for key in side} - set(order)),
        unlike=unlike([(mine[key], its[key]) for key in shared]),
    )


def row(record: Record) -> str:
    """The task, and what was done to its images."""
    return record.task + (f" · {done['name']} {done['severity']}" if (done := record.corruption) else "")


def over_conditions(pairs: Sequence[Pair]) -> Pair:
    """Outcomes of the same images under several conditions as one: of each image the share that is right."""
    if len(pairs) == 1:
        return pairs[0]
    return np.mean([a for a, _ in pairs], axis=0), np.mean([b for _, b in pairs], axis=0)


def apart(mine: Side, its: Side) -> str:
    """In which way the images of two sides differ, and what to do about it."""
    tasks = [list(dict.fromkeys(task for task, _, _ in side)) for side in (mine, its)]
    both = [task for task in tasks[0] if task in tasks[1]]
    if not both:
        first, second = (", ".join(names[:3]) + (", …" if len(names) > 3 else "") for names in tasks)
        return f"{first} / {second}; score both on a task that they share"
    said = []
    for task in both[:3]:
        ours, theirs = ([record for record in side.values() if record.task == task] for side in (mine, its))
        words = [images_of(ours), images_of(theirs)]
        if ours[0].fingerprint == theirs[0].fingerprint:
            words = [", ".join(treated(record) for record in records) for records in (ours, theirs)]
        elif words[0] == words[1]:
            words = [
                f"{word} of sha256 {side[0].fingerprint[:8]}" for word, side in zip(words, (ours, theirs), strict=True)
            ]
        said.append(f"{task}: {words[0]} / {words[1]}")
    more = ["…"] if len(both) > 3 else []
    return f"{'; '.join([*said, *more])}; score both with the same data, split, --limit, --seed and corruption"


def images_of(records: Sequence[Record]) -> str:
    """How many images of which split, and how they were chosen."""
    first, chosen = records[0], records[0].chosen
    how = []
    if carved := chosen.get("carved"):
        how.append(f"carved from {carved['of']}, seed {carved['seed']}")
    if limit := chosen.get("limit"):
        how.append(f"--limit {limit['images']}, seed {limit['seed']}")
    how += [f"{first.unreadable} unreadable left out"] if first.unreadable else []
    return f"{first.n} images of {first.split}" + (f" ({'; '.join(how)})" if how else "")


def treated(record: Record) -> str:
    """What was done to the images."""
    done = record.corruption
    return f"{done['name']} {done['severity']} of seed {done['seed']}" if done else "clean images"


def unlike(pairs: Sequence[tuple[Record, Record]]) -> list[str]:
    """How two models were scored differently on the same images."""
    found = []
    for what, of in (
        ("precision", lambda record: record.dtype),
        ("base", lambda record: record.base),
        ("temperature", lambda record: "none" if record.temperature is None else "fitted on val"),
    ):
        sides = [", ".join(dict.fromkeys(of(record) for record in side)) for side in zip(*pairs, strict=True)]
        found += [f"{what} {sides[0]} / {sides[1]}"] if any(of(one) != of(other) for one, other in pairs) else []
    return found


def find(folder: Path, model: str | None) -> Side:
    """A model's records in a folder."""
    if not folder.exists():
        raise ConfigError(f"{folder}: no such file or folder; takes the folder of a run or an evaluation")
    if not (folder / "records.jsonl").is_file():
        raise ConfigError(f"{folder}: is no folder of a run or an evaluation (it holds no records.jsonl)")
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
    model = next((record.model for record in records if record.title == model), model)
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
    names = [found.a, found.b]
    if found.a == found.b:
        names = [f"{name} of {folder}" for name, folder in zip(names, found.folders, strict=True)]
    corrupted = len(found.tasks) > found.average.tasks
    notes = [
        f"A: {names[0]}. B: {names[1]}. Differences in percentage points on the same images; only A, only B: images "
        "that one of them alone is right on.",
        "95 %: paired bootstrap. p: exact McNemar test, of the average a stratified sign-flip test; p (Holm): adjusted "
        f"for the number of {'rows' if corrupted else 'tasks'}. detectable: the difference that such a test finds four "
        "times in five.",
    ]
    if corrupted:
        notes.append("average: an image that was scored several times is one image, its outcome the mean.")
    if found.unlike:
        notes.append(f"The two were scored differently (A / B): {'; '.join(found.unlike)}.")
    if found.left_out:
        notes.append(f"Left out, as the two were not scored on the same images: {', '.join(found.left_out)}.")
    return Table(header, rows, notes)


def points(difference: float, interval: Sequence[float]) -> tuple[str, str]:
    low, high = (100 * end for end in interval)
    return f"{100 * difference:+.2f}", f"{low:+.2f} to {high:+.2f}"


def p_text(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"
