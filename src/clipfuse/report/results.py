"""The tables of a run: accuracies, and where they were measured the joint label space, calibration, corruptions."""

from collections.abc import Mapping, Sequence
from math import exp, log

from clipfuse.evaluate.record import Record
from clipfuse.report.notes import calibration_notes, notes
from clipfuse.report.published import ON_TEST, backbone_of, field_order, method_key, published_rows
from clipfuse.report.table import DASH, Table


def results_tables(records: Sequence[Record], remarks: Sequence[str] = (), published: bool = False) -> list[Table]:
    """All tables that records give; the accuracies come first."""
    tables = [results_table(records, remarks, published)]
    if any(record.joint for record in records):
        tables += joint_tables(records)
    if any(record.temperature is not None for record in records):
        tables.append(calibration_table(records))
    return tables


def results_table(records: Sequence[Record], remarks: Sequence[str] = (), published: bool = False) -> Table:
    """Accuracy in per cent, models × tasks in the field's order, with the mean and its 95 % half-width, and where there
    are any the normalised mean, data seen, means over merged and other tasks apart, and means over corruptions;
    published figures on request.
    """
    tasks = field_order(list(dict.fromkeys(record.task for record in records)))
    rows = {name: {task: [record] for task, record in found.items()} for name, found in by_row(records).items()}
    rows |= over_corruptions(records)
    norms = {name: normalised(found, tasks) for name, found in rows.items()}
    apart = {record.merged_task for record in records} >= {True, False}
    normed = any(norm is not None for norm in norms.values())
    seen = any(record.role == "merged" for record in records)
    header = ["model", *tasks, "average", *(["merged", "unseen"] if apart else []), "±"]
    header += [*(["norm."] if normed else []), *(["data seen"] if seen else [])]
    cells = []
    for name, found in rows.items():
        norm, first = norms[name], next(iter(found.values()))[0]
        row = [name, *accuracies(found, tasks, apart)]
        row += [DASH if norm is None else percent(norm)] if normed else []
        row += [(", ".join(first.uses) or "none") if first.role == "merged" else ""] if seen else []
        cells.append(row)
    said = [*notes(records, normed), *remarks]
    quoted = quoted_rows(records, tasks, len(header)) if published else Table([], [])
    ranked = competing(list(rows.values()))
    return Table(header, cells, [*said, *quoted.notes], quoted.rows, ranked=ranked)


def accuracies(found: Mapping[str, Sequence[Record]], tasks: Sequence[str], apart: bool) -> list[str]:
    """Cells of the tasks, of their mean, of the means over merged and other tasks, and of half the mean's interval.

    The last is for one record a task: several are of the same images, and no interval of theirs is known.
    """
    mine = [record for task in tasks for record in found.get(task, ())]
    whole = found.keys() >= set(tasks)
    parts = [[record for record in mine if record.merged_task is kind] for kind in (True, False)] if apart else []
    return [
        *[percent(average(found[task])) if task in found else DASH for task in tasks],
        *[percent(average(part)) if whole and part else DASH for part in (mine, *parts)],
        percent(half_width(mine)) if whole and len(mine) == len(tasks) else DASH,
    ]


def normalised(found: Mapping[str, Sequence[Record]], tasks: Sequence[str]) -> float | None:
    """Mean of accuracies ÷ those of the tasks' own experts; None unless all tasks have one."""
    shares = [record.normalised for task in tasks for record in found.get(task, ()) if record.normalised is not None]
    whole = found.keys() >= set(tasks) and len(shares) == sum(map(len, found.values()))
    return sum(shares) / len(shares) if whole else None


def over_corruptions(records: Sequence[Record]) -> dict[str, dict[str, list[Record]]]:
    """Of each model with at least two corruptions a row: the records of each task that was scored under all of them."""
    corrupted: dict[str, dict[str, Mapping[str, Record]]] = {}
    for name, found in by_row([record for record in records if record.corruption]).items():
        corrupted.setdefault(next(iter(found.values())).title, {})[name] = found
    rows = {}
    for model, parts in corrupted.items():
        tasks = [task for task in next(iter(parts.values())) if all(task in found for found in parts.values())]
        if len(parts) > 1 and tasks:
            rows[f"{model} · mean of {len(parts)} corruptions"] = {
                task: [found[task] for found in parts.values()] for task in tasks
            }
    return rows


def competing(rows: Sequence[Mapping[str, Sequence[Record]]]) -> tuple[tuple[int, ...], ...]:
    """Numbers of the rows of models that are neither base nor experts, those of one condition together."""
    found: dict[tuple[str, ...], list[int]] = {}
    for number, row in enumerate(rows):
        first = next(iter(row.values()))
        if first[0].role in ("merged", "other"):
            found.setdefault(tuple(str(record.corruption) for record in first), []).append(number)
    return tuple(map(tuple, found.values()))


def by_row(records: Sequence[Record]) -> Mapping[str, Mapping[str, Record]]:
    """Row → task → record; a row is a model, and what was done to the images."""
    found: dict[str, dict[str, Record]] = {}
    for record in records:
        done = record.corruption
        name = f"{record.title} · {done['name']} {done['severity']}" if done else record.title
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
    marks = [", transductive" if row.key.startswith(ON_TEST) else "" for row in rows]
    cells = [[f"{row.title} ({row.suite}{mark})", *row.cells()] for row, mark in zip(rows, marks, strict=True)]
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
                    r.entropy or 0.0,
                    log(r.temperature or 1.0),
                    (r.tempered_ece or 0) * 100,
                    (r.tempered_loss or 0) / r.n,
                ]
                for r in mine
            ]
            ece, nll, entropy, logarithm, ece_at, nll_at = (
                sum(column) / len(mine) for column in zip(*figures, strict=True)
            )
            plain = [f"{ece:.1f}", f"{nll:.3f}", f"{entropy:.3f}"]
            rows.append([name, *plain, f"{exp(logarithm):.2f}", f"{ece_at:.1f}", f"{nll_at:.3f}"])
    header = ["model", "ECE %", "NLL", "entropy", "temperature", "ECE % at it", "NLL at it"]
    return Table(header, rows, calibration_notes(records), title="Calibration")


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def average(records: Sequence[Record]) -> float:
    """Mean of the tasks' accuracies."""
    return sum(record.accuracy for record in records) / len(records)


def half_width(records: Sequence[Record]) -> float:
    """Half of the 95 % interval of the mean, from the tasks' Wilson intervals (images are independent)."""
    return sum(((r.interval[1] - r.interval[0]) / 2) ** 2 for r in records) ** 0.5 / len(records)
