"""Records of a merged model as parts of its card: a Markdown section, and what the hub calls the model index."""

from collections.abc import Mapping, Sequence
from typing import Any

from clipfuse.config.presets import SHIPPED
from clipfuse.config.read import read_yaml
from clipfuse.evaluate.record import Record
from clipfuse.report.published import column_title, field_order
from clipfuse.report.results import average, by_row, half_width, notes, percent
from clipfuse.report.table import DASH, Table

TASK_TYPE = "zero-shot-image-classification"
COMMIT, DIGITS = 7, 12
"""Digits of a commit and of a hash in a table."""


def results_markdown(records: Sequence[Record]) -> str:
    """Tables of one model's records, the clean images' first, and what a reader must know of them."""
    clean = [record for record in records if not record.corruption]
    tables = [results_table(list(found.values())) for found in by_row(clean).values()]
    for found in by_row([record for record in records if record.corruption]).values():
        rows = list(found.values())
        done = rows[0].corruption or {}
        tables.append(results_table(rows, f"Images corrupted by {done['name']}, severity {done['severity']}"))
    said = ["Intervals are Wilson's, 95 %; NLL is the mean cross-entropy in nats."]
    if any(record.over_base is not None for record in records):
        said.append("over base: points of accuracy above the base's on the same images.")
    remarks = [f"- {remark}" for remark in [*said, *retention(clean), *notes(records)]]
    return "\n".join([*[table.markdown().rstrip("\n") + "\n" for table in tables], *remarks, ""])


def results_table(records: Sequence[Record], title: str = "") -> Table:
    """Tasks as rows in the field's order, then the mean, and those over merged and other tasks where there are both."""
    mine = in_order(records)
    beside = any(record.over_base is not None for record in mine)
    normed = any(record.normalised is not None for record in mine)
    header = ["task", "data set", "images sha256", "split", "images", "accuracy %", "95 % interval", "NLL"]
    header += [*(["over base"] if beside else []), *(["norm. %"] if normed else [])]
    parts = {record.task: [record] for record in mine} | ({"average": mine} if len(mine) > 1 else {})
    if {record.merged_task for record in mine} >= {True, False}:
        parts |= {"merged": [r for r in mine if r.merged_task], "unseen": [r for r in mine if r.merged_task is False]}
    rows = []
    for name, part in parts.items():
        gap, share = mean([record.over_base for record in part]), mean([record.normalised for record in part])
        first, *more = about(name, part)
        marks = ["transductive"] * part[0].transductive + ["task id known"] * part[0].needs_task_id
        shown = f"{first} ({', '.join(marks)})" if marks else first
        row = [shown, *more, percent(average(part)), spread(name, part)]
        row.append(f"{sum(record.loss / record.n for record in part) / len(part):.3f}")
        row += [DASH if gap is None else f"{100 * gap:+.1f}"] if beside else []
        row += [DASH if share is None else percent(share)] if normed else []
        rows.append(row)
    return Table(header, rows, title=title)


def about(name: str, records: Sequence[Record]) -> list[str]:
    """What a row is of: a task with its data, or the mean of several."""
    count = f"{sum(record.n for record in records):,}"
    if name != records[0].task:
        return [name, "", "", "", count]
    record, data = records[0], records[0].data
    config = f" ({data['config']})" if data.get("config") not in (None, "default") else ""
    place = (
        f"{data['hub_dataset']}{config}@{str(data.get('revision'))[:COMMIT]}" if data.get("hub_dataset") else "local"
    )
    return [column_title(name), place, record.fingerprint[:DIGITS], record.split, count]


def spread(name: str, records: Sequence[Record]) -> str:
    """The interval of a task, or half of the mean's."""
    if name != records[0].task:
        return f"± {percent(half_width(records))}"
    low, high = records[0].interval
    return f"{percent(low)} to {percent(high)}"


def mean(values: Sequence[float | None]) -> float | None:
    """None where one is not known."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def in_order(records: Sequence[Record]) -> list[Record]:
    """By task, in the field's order."""
    order = field_order([record.task for record in records])
    return sorted(records, key=lambda record: order.index(record.task))


def retention(records: Sequence[Record]) -> list[str]:
    """What is said of tasks whose experts were not merged."""
    unseen = [record for record in records if record.merged_task is False]
    if not unseen:
        return []
    names = ", ".join(column_title(record.task) for record in in_order(unseen))
    text = f"Zero-shot retention: no expert of {names} was merged; accuracy there is {percent(average(unseen))} %"
    gap = mean([record.over_base for record in unseen])
    beside = f" (base: {percent(average(unseen) - gap)} %)" if gap is not None else ""
    return [f"{text}{beside}."]


def model_index(name: str, records: Sequence[Record], version: str, url: str) -> list[dict[str, Any]]:
    """The hub's form of the clean results: an accuracy in [0, 1] for each task, with all that says of what.

    Args:
        name: Of the model.
        records: Of one model.
        version: Of clipfuse.
        url: Where the records can be read.
    """
    clean = in_order([record for record in records if not record.corruption])
    return [{"name": name, "results": [result(record, version, url) for record in clean]}] if clean else []


def result(record: Record, version: str, url: str) -> dict[str, Any]:
    """One entry of the model index."""
    data = record.data
    dataset: dict[str, Any] = {
        "type": data.get("hub_dataset") or record.task,
        "name": column_title(record.task),
        "config": data.get("config"),
        "split": data.get("split") or record.split,
        "revision": data.get("revision"),
        "args": {"images_and_labels_sha256": record.fingerprint, **record.chosen},
    }
    low, high = record.interval
    count = f"{'a choice of ' if 'limit' in record.chosen else ''}{record.n:,} images"
    count += ", transductive: the method has seen them" if record.transductive else ""
    metric = {
        "type": "accuracy",
        "value": record.accuracy,
        "name": f"accuracy (95 % interval {percent(low)} to {percent(high)} %, {count})",
        "args": {"wilson_95": list(record.interval), "correct": record.correct, "images": record.n},
    }
    return {
        "task": {"type": TASK_TYPE, "name": "Zero-Shot Image Classification"},
        "dataset": {key: value for key, value in dataset.items() if value is not None},
        "metrics": [metric],
        "source": {"name": f"clipfuse {version}, {count}", "url": url},
    }


def hub_datasets(records: Sequence[Record]) -> list[str]:
    """The data sets on the hub that results are of."""
    found = [record.data.get("hub_dataset") for record in in_order(records)]
    return [str(name) for name in dict.fromkeys(found) if name]


def evaluate_words(records: Sequence[Record]) -> str:
    """What makes `clipfuse evaluate` score the same images: tasks (a shipped suite if they are one), split, limit."""
    tasks = [record.task for record in in_order(records)]
    suites: Mapping[str, set[str]] = {
        path.stem: set(read_yaml(path)["tasks"]) for path in sorted((SHIPPED / "taskpool").glob("*.yaml"))
    }
    found = next((name for name, members in suites.items() if members == set(tasks)), None)
    words = [f"taskpool={found}" if found else f"'taskpool={{tasks: [{', '.join(tasks)}]}}'"]
    first = records[0]
    words += [f"split={first.split}"] if first.split != "test" else []
    seed = next((done["seed"] for record in records for done in record.chosen.values() if "seed" in done), 0)
    words += [f"--limit {first.limit}"] if first.limit is not None else []
    words += [f"--seed {seed}"] if seed else []
    return " ".join(words)
