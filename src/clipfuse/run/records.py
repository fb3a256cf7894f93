"""Scores → records, and what is only seen when records stand side by side."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clipfuse.data import Corruption
from clipfuse.evaluate import Record, Score
from clipfuse.evaluate.calibration import expected_calibration_error
from clipfuse.evaluate.metrics import by_task, confusion, most_confused, wilson
from clipfuse.evaluate.record import environment
from clipfuse.run.bench import Bench
from clipfuse.tasks import Task, fold

Role = Literal["base", "expert", "merged", "other"]


def record_of(
    bench: Bench,
    score: Score,
    split: str,
    role: Role,
    corruption: Corruption | None = None,
    exact: Score | None = None,
    val: Score | None = None,
    **of: Any,
) -> Record:
    """A score with all that is needed to get it again.

    Args:
        bench: Where it was scored.
        score: What was counted.
        split: Of the images.
        role: What the model is in the run.
        corruption: What was done to the images.
        exact: The same in float32 on the first images, where `score` has a lower precision.
        val: The model's score on the val split that its temperature was fitted on.
        of: `recipe` or `source`, `uses`, and `seen`.
    """
    task = next(task for task in bench.tasks if task.name == score.task)
    images = next(images for images in bench.images[split] if images.split.task == score.task)
    matrix = confusion(score.labels, score.columns["prediction"], score.classes)
    columns = score.columns
    tempered: dict[str, Any] = {}
    if val is not None:
        tempered = {
            "val": {"n": val.n, "correct": val.correct, **bench.chosen("val", score.task)},
            "temperature": score.temperature,
            "tempered_loss": float(columns["tempered_loss"].double().sum()),
            "tempered_ece": expected_calibration_error(columns["tempered_confidence"], columns["rank"] == 0),
        }
    return Record(
        model=score.model,
        role=role,
        recipe=of.get("recipe"),
        source=of.get("source"),
        base=bench.base.ref,
        parameters=score.parameters,
        task=score.task,
        split=split,
        classes=len(task.classes),
        data={key: value for key, value in images.split.origin.items() if key != "files"},
        chosen=bench.chosen(split, score.task),
        fingerprint=score.fingerprint,
        corruption=asdict(corruption) if corruption else None,
        limit=bench.config.limit,
        n=score.n,
        unreadable=score.unreadable,
        correct=score.correct,
        top5=score.top5,
        accuracy=score.correct / score.n,
        interval=wilson(score.correct, score.n),
        loss=score.loss,
        ece=expected_calibration_error(columns["confidence"], columns["rank"] == 0),
        entropy=float(columns["entropy"].double().mean()),
        **tempered,
        per_class=list(zip(matrix.sum(1).tolist(), matrix.diagonal().tolist(), strict=True)),
        confused=most_confused(matrix, task.classes),
        joint=joint_of(bench, score),
        needs_task_id=(of.get("recipe") or {}).get("kind") == "per_task",
        uses=tuple(of.get("uses", ())),
        seen=tuple(of.get("seen", ())),
        dtype=bench.scoring.dtype,
        versus_float32=difference(score, exact) if exact else None,
        batch_size=score.batch_size,
        environment=environment(
            score.seconds, str(bench.device), reused=score.reused, processes=bench.scoring.workers.count
        ),
    )


def joint_of(bench: Bench, score: Score) -> Mapping[str, Any] | None:
    """What the joint head of all tasks made of a score's images; None of a model that was told the task."""
    joint = bench.scoring.joint
    if joint is None or "joint" not in score.columns:
        return None
    said = score.columns["joint"]
    correct = int((said == score.labels + joint.starts[score.task]).sum())
    as_task = by_task(said, joint.ends, list(joint.starts))
    return {"correct": correct, "interval": wilson(correct, score.n), "as_task": as_task}


def difference(score: Score, exact: Score) -> Mapping[str, int]:
    """How a lower precision differs from float32 on the images that both have seen: the first ones."""
    mine, its = score.columns, exact.columns
    return {
        "n": exact.n,
        "differ": int((mine["prediction"][: exact.n] != its["prediction"]).sum()),
        "correct": int((mine["rank"][: exact.n] == 0).sum()),
        "correct_float32": exact.correct,
    }


def with_references(records: Sequence[Record], tasks: Sequence[Task]) -> list[Record]:
    """Records with what they are beside the base's and the task's own expert's on the same images."""
    named = {task.name: task for task in tasks}
    base = {place(r): r.accuracy for r in records if r.role == "base"}
    own = {place(r): r.accuracy for r in records if r.role == "expert" and is_expert(r.model, named[r.task])}
    found = []
    for record in records:
        update: dict[str, Any] = {}
        if (reference := base.get(place(record))) is not None:
            update["over_base"] = record.accuracy - reference
        if (reference := own.get(place(record))) is not None:
            update |= {"over_expert": record.accuracy - reference}
            update |= {"normalised": record.accuracy / reference} if reference else {}
        if record.role == "merged" and record.recipe:
            members = [member["name"] for member in record.recipe["pool"]]
            update["merged_task"] = any(named[record.task].answers_to(name) for name in members)
        found.append(record.model_copy(update=update))
    return found


def is_expert(model: str, task: Task) -> bool:
    """Whether a model's name says that it is the task's: `gtsrb`, or `clip-vit-base-patch32_gtsrb` as on the hub."""
    names = map(fold, (task.name, *task.aliases))
    return any(fold(model) == name or fold(model).endswith(f"_{name}") for name in names)


def place(record: Record) -> tuple[str, str, str]:
    """What records must share to be compared."""
    return record.task, record.fingerprint, str(record.corruption)


def save_predictions(folder: Path, scores: Sequence[Score], corruption: Corruption | None = None) -> None:
    """What was predicted of each image: `<model>/<task>.npz`, a corruption's in a folder of its name.

    Arrays (image,): `label` and `prediction`, `rank` of the label among the logits (0: correct), int32; `margin` of
    the largest logit over the next and its `confidence`, float16; `loss` and `entropy` in nats, float32; and, where
    they were asked for, `tempered_confidence`, `tempered_loss` and `joint`.
    """
    for score in scores:
        where = folder / file_name(score.model) / (file_name(str(corruption)) if corruption else "")
        where.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {"label": score.labels.int().numpy()}
        for name, values in score.columns.items():
            if name != "place":
                small = name in ("margin", "confidence", "tempered_confidence")
                arrays[name] = values.numpy().astype(np.float16) if small else values.numpy()
        np.savez_compressed(where / f"{file_name(score.task)}.npz", **arrays)


def file_name(name: str) -> str:
    """A model's or task's name as a file name."""
    return re.sub(r"[^\w =+()-]", "_", name)
