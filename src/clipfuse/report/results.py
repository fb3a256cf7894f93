"""The tables of a run: accuracies, and where they were measured the joint label space, calibration, corruptions."""

from collections.abc import Mapping, Sequence

from clipfuse.evaluate.metrics import far_above
from clipfuse.evaluate.record import Record
from clipfuse.report.published import backbone_of, field_order, method_key, published_rows
from clipfuse.report.table import DASH, Table

Row = tuple[str, str]
"""Model, and what was done to the images."""


def results_tables(records: Sequence[Record], remarks: Sequence[str] = (), published: bool = False) -> list[Table]:
    """All tables that records give; the accuracies come first."""
    tables = [results_table(records, remarks, published)]
    if any(record.joint for record in records):
        tables += joint_tables(records)
    if any(record.temperature is not None for record in records):
        tables.append(calibration_table(records))
    return tables


def results_table(records: Sequence[Record], remarks: Sequence[str] = (), published: bool = False) -> Table:
    """Accuracy in per cent, models × tasks in the field's order, with the mean, its 95 % half-width, the normalised
    mean, and data seen; means over merged and other tasks apart where there are both; published figures on request.
    """
    tasks = field_order(list(dict.fromkeys(record.task for record in records)))
    apart = {record.merged_task for record in records} >= {True, False}
    header = ["model", *tasks, "average", *(["merged", "unseen"] if apart else []), "±", "norm.", "data seen"]
    rows = []
    for name, found in by_row(records).items():
        mine = [found[task] for task in tasks if task in found]
        whole = len(mine) == len(tasks)
        shares = [record.normalised for record in mine if record.normalised is not None]
        parts = [[r for r in mine if r.merged_task is kind] for kind in (True, False)]
        rows.append(
            [
                name,
                *[percent(found[task].accuracy) if task in found else DASH for task in tasks],
                percent(average(mine)) if whole else DASH,
                *[percent(average(part)) if whole and part else DASH for part in parts if apart],
                percent(half_width(mine)) if whole else DASH,
                percent(sum(shares) / len(shares)) if whole and len(shares) == len(tasks) else DASH,
                ", ".join(mine[0].uses) or "none" if mine[0].role == "merged" else "",
            ]
        )
    said = [*notes(records), *remarks]
    quoted = quoted_rows(records, tasks, len(header)) if published else Table([], [])
    kinds = [next(iter(found.values())).role for found in by_row(records).values()]
    ranked = tuple(number for number, kind in enumerate(kinds) if kind in ("merged", "other"))
    return Table(header, rows, [*said, *quoted.notes], quoted.rows, ranked=ranked)


def by_row(records: Sequence[Record]) -> Mapping[str, Mapping[str, Record]]:
    """Row → task → record; a row is a model, and what was done to the images."""
    found: dict[str, dict[str, Record]] = {}
    for record in records:
        done = record.corruption
        name = f"{record.model} · {done['name']} {done['severity']}" if done else record.model
        found.setdefault(name, {})[record.task] = record
    return found


def quoted_rows(records: Sequence[Record], tasks: Sequence[str], width: int) -> Table:
    """Published counterparts of the models, padded to the table's width, and their sources as notes.

    Published figures are of whole, clean test splits: there are none for others.
    """
    clean = [r for r in records if r.split == "test" and r.limit is None and not r.corruption]
    rows = []
    for found in by_row(clean).values():
        record = next(iter(found.values()))
        key, backbone = method_key(record.role, record.recipe), backbone_of(record.base)
        members = [member["name"] for member in (record.recipe or {}).get("pool", [])]
        merged = [member for member in members if not member.startswith("_")]
        if key and backbone:
            rows += published_rows(backbone, tasks, [key], merged=merged or merged_anywhere(clean))
    rows = list(dict.fromkeys(rows))
    if not rows:
        return Table([], [], ["No published figures are known of this base, these methods, tasks and images."])
    cells = [[f"{row.title} ({row.suite})", *row.cells()] for row in rows]
    sources = "; ".join(dict.fromkeys(row.source for row in rows))
    return Table([], [[*row, *[""] * (width - len(row))] for row in cells], [f"In italics as published: {sources}."])


def merged_anywhere(records: Sequence[Record]) -> list[str]:
    """The experts of the first merged model: what base and experts stand beside."""
    pool = next((record.recipe["pool"] for record in records if record.recipe), [])
    return [member["name"] for member in pool if not member["name"].startswith("_")]


def joint_tables(records: Sequence[Record]) -> list[Table]:
    """Accuracies in the joint head, and of merged models which tasks images were taken for."""
    tasks = field_order(list(dict.fromkeys(record.task for record in records if record.joint)))
    rows, confusions = [], []
    for name, found in by_row(records).items():
        mine = [found[task].joint for task in tasks if task in found]
        if len(mine) < len(tasks) or not all(mine):
            continue
        shares = [joint["correct"] / found[task].n for task, joint in zip(tasks, mine, strict=True) if joint]
        rows.append([name, *map(percent, shares), percent(sum(shares) / len(shares))])
        if next(iter(found.values())).role in ("merged", "other"):
            cells = [[percent(found[task].joint["as_task"][said] / found[task].n) for said in tasks] for task in tasks]  # type: ignore[index]
            body = [[task, *row] for task, row in zip(tasks, cells, strict=True)]
            note = "Rows: the images' task; columns: the task of the class that was predicted; per cent of the images."
            confusions.append(Table(["images of", *tasks], body, [note], title=f"Task confusion of {name}"))
    note = "Top-1 accuracy in per cent with all tasks' classes in one head: the model is not told the task."
    return [Table(["model", *tasks, "average"], rows, [note], title="Joint label space"), *confusions]


def calibration_table(records: Sequence[Record]) -> Table:
    """Calibration, mean over tasks, as it is and with the temperature that val fits best."""
    rows = []
    for name, found in by_row(records).items():
        mine = [record for record in found.values() if record.temperature is not None]
        if mine:
            figures = [
                [
                    r.ece * 100,
                    r.loss / r.n,
                    r.temperature or 0.0,
                    (r.tempered_ece or 0) * 100,
                    (r.tempered_loss or 0) / r.n,
                ]
                for r in mine
            ]
            means = [sum(column) / len(mine) for column in zip(*figures, strict=True)]
            rows.append([name, *[f"{mean:.{digits}f}" for mean, digits in zip(means, (1, 3, 2, 1, 3), strict=True)]])
    header = ["model", "ECE %", "NLL", "temperature", "ECE % at it", "NLL at it"]
    note = "Means over tasks; each model's temperature was fitted on each task's val images and labels."
    return Table(header, rows, [note], title="Calibration")


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def average(records: Sequence[Record]) -> float:
    """Mean of the tasks' accuracies."""
    return sum(record.accuracy for record in records) / len(records)


def half_width(records: Sequence[Record]) -> float:
    """Half of the 95 % interval of the mean, from the tasks' Wilson intervals (images are independent)."""
    return sum(((r.interval[1] - r.interval[0]) / 2) ** 2 for r in records) ** 0.5 / len(records)


def notes(records: Sequence[Record]) -> list[str]:
    """What a reader must know: which images, how many, what is missing, and what the tiny suite is."""
    splits = sorted({record.split for record in records})
    sizes = ", ".join(dict.fromkeys(f"{record.task} {record.n}" for record in records))
    found = [
        f"Top-1 accuracy in per cent on {', '.join(splits)} images ({sizes}); ± is half of the average's 95 % interval."
    ]
    if any(record.normalised is not None for record in records):
        found.append("norm.: mean over tasks of accuracy ÷ that of the task's own expert, in per cent.")
    if {record.merged_task for record in records} >= {True, False}:
        found.append("merged: mean over tasks whose experts were merged; unseen: over the others.")
    if any(record.limit is not None for record in records):
        found.append("With --limit only a seeded choice of the images is scored.")
    if carved := sorted({record.task for record in records if "carved" in record.chosen}):
        found.append(f"val of {', '.join(carved)} is a tenth of train, which published experts were trained on.")
    if missing := {record.task: record.unreadable for record in records if record.unreadable}:
        counts = ", ".join(f"{task} {count}" for task, count in missing.items())
        found.append(f"Images that could not be read were left out: {counts}.")
    found += lower_precision(records)
    found += suspicions(records)
    if any(record.task.startswith("tiny-") for record in records):
        found.append(
            "Tiny suite: a small CLIP on small generated tasks; its figures say nothing about real CLIP models."
        )
    return found


def suspicions(records: Sequence[Record]) -> list[str]:
    """Experts that are far better on test than on val, as after training on test images."""
    found = []
    for record in records:
        trained = record.role in ("expert", "other") and record.split == "test" and not record.corruption
        if trained and record.val:
            warning = far_above((record.correct, record.n), (record.val["correct"], record.val["n"]))
            found += [f"{record.model} on {record.task}: {warning}"] if warning else []
    return found


def lower_precision(records: Sequence[Record]) -> list[str]:
    """How far a lower precision than float32 changed predictions."""
    seen = [record.versus_float32 for record in records if record.versus_float32]
    if not seen:
        return []
    n, differ, mine, exact = (sum(one[key] for one in seen) for key in ("n", "differ", "correct", "correct_float32"))
    dtype = next(record.dtype for record in records if record.versus_float32)
    said = f"{dtype}: {differ} of {n} predictions differ from those in float32"
    return [f"{said}, {mine} are correct against {exact} (the first images of each task)."]
