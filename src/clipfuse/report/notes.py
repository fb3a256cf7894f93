"""What a reader must know of records, below the tables."""

from collections.abc import Mapping, Sequence

from clipfuse.evaluate.calibration import COLDEST, HOTTEST
from clipfuse.evaluate.metrics import far_above
from clipfuse.evaluate.record import Record


def notes(records: Sequence[Record], normed: bool | None = None) -> list[str]:
    """What a reader must know: which images, how many, what is missing, and what the tiny suite is.

    Args:
        records: All of a table.
        normed: Whether the table shows normalised accuracies; None is where a record has one.
    """
    splits = sorted({record.split for record in records})
    sizes = ", ".join(dict.fromkeys(f"{record.task} {record.n}" for record in records))
    found = [
        f"Top-1 accuracy in per cent on {', '.join(splits)} images ({sizes}); ± is half of the average's 95 % interval."
    ]
    if any(record.normalised is not None for record in records) if normed is None else normed:
        found.append("norm.: mean over tasks of accuracy ÷ that of the task's own expert, in per cent.")
    if {record.merged_task for record in records} >= {True, False}:
        found.append("merged: mean over tasks whose experts were merged; unseen: over the others.")
    if told := list(dict.fromkeys(record.model for record in records if record.needs_task_id)):
        found.append(
            f"{', '.join(told)}: told the task of each image, for which it has a module; other models are not told."
        )
    if any("limit" in record.chosen for record in records):
        found.append("With --limit only a seeded choice of the images is scored.")
    if carved := sorted({record.task for record in records if "carved" in record.chosen}):
        found.append(f"val of {', '.join(carved)} is a tenth of train, which published experts were trained on.")
    if missing := {record.task: record.unreadable for record in records if record.unreadable}:
        counts = ", ".join(f"{task} {count}" for task, count in missing.items())
        found.append(f"Images that could not be read were left out: {counts}.")
    found += data_seen(records)
    found += lower_precision(records)
    found += suspicions(records)
    if any(record.task.startswith("tiny-") for record in records):
        found.append(
            "Tiny suite: a small CLIP on small generated tasks; its figures say nothing about real CLIP models."
        )
    return found


def data_seen(records: Sequence[Record]) -> list[str]:
    """How many images of which splits each merged model's method has looked at, and what transductive means."""
    found = []
    for title, seen in {record.title: record.seen for record in records if record.seen}.items():
        parts = []
        for rule, split in dict.fromkeys((row.get("rule", ""), row["split"]) for row in seen):
            rows = [row for row in seen if (row.get("rule", ""), row["split"]) == (rule, split)]
            images, looks = sum(row["images"] for row in rows), sum(row["images"] * row["passes"] for row in rows)
            labels = sum(int(row["labels"]) for row in rows)
            how = f"{labels:,} labels" if labels else "no labels"
            parts.append(f"{rule} {images:,} {split} images, {how}, {looks / max(images, 1):.3g} passes")
        found.append(f"{title} has seen: {'; '.join(parts)}.")
    if any(record.transductive for record in records):
        found.append("transductive: the method has seen the very images that it is scored on.")
    return found


def calibration_notes(records: Sequence[Record]) -> list[str]:
    """What a reader must know of the temperatures: what they were fitted on, and which have no meaning."""
    found = [
        "Means over tasks, of the temperatures geometric ones; each model's was fitted on each task's val images and "
        "labels."
    ]
    ends = [r for r in records if r.temperature in (COLDEST, HOTTEST)]
    if named := list(dict.fromkeys(f"{r.model} on {r.task} ({r.temperature:g})" for r in ends)):
        found.append(f"Fits that ended at a bound, {COLDEST:g} or {HOTTEST:g}: {', '.join(named)}.")
    carved = {r.task: r.val["n"] for r in records if r.val and isinstance(r.val.get("carved"), Mapping)}
    found += [f"val of {task} is a tenth of train ({n:,} images)." for task, n in carved.items()]
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
