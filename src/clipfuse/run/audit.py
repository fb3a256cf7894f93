"""`audit`: whether a task's test images are in its training images, and an expert's figures look like it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipfuse.data import Split, open_split
from clipfuse.data.overlap import Overlap, overlap, take_prints
from clipfuse.errors import TaskError
from clipfuse.evaluate.metrics import far_above
from clipfuse.progress import Stage, silent
from clipfuse.run.models import evaluate_models
from clipfuse.run.tasks import draw_tiny, get_task


@dataclass(frozen=True)
class Audit:
    """What of a task's test images is in train, by name."""

    task: str
    train: Split
    test: Split
    overlap: Overlap

    def pairs(self) -> list[dict[str, Any]]:
        """The pairs with names, distance (0 of exact copies) and labels."""
        triples = sorted([*((t, p, 0.0) for t, p in self.overlap.exact), *self.overlap.near])
        return [
            {
                "test": self.test.label_of(row),
                "train": self.train.label_of(partner),
                "distance": round(distance, 4),
                "labels": [self.test.labels[row], self.train.labels[partner]],
            }
            for row, partner, distance in triples
        ]


def audit_task(name: str, stage: Stage = silent) -> Audit:
    """Compare every test image of a task with every train image. Raises TaskError: no train split, or bad images."""
    task = get_task(name)
    if "train" not in task.splits:
        raise TaskError(f"{task.name}: has no train split to compare its test images with")
    draw_tiny([task], ["train", "test"], stage)
    train, test = open_split(task, "train"), open_split(task, "test")
    with stage("look at images", len(train) + len(test), "img") as told:
        known, looked_for = take_prints(train, told), take_prints(test, told)
    found = overlap(known, looked_for, train.labels, test.labels)
    return Audit(task.name, train, test, found)


def audit_expert(name: str, expert: str, tree: Mapping[str, Any], stage: Stage = silent) -> dict[str, Any]:
    """Score an expert on val and test; `warning` says so where test is far above val, as after training on it."""
    scored = {}
    for split in ("val", "test"):
        config = {**tree, "taskpool": {"tasks": [name]}, "split": split}
        record = evaluate_models([expert], config, stage)[0]
        scored[split] = record.correct, record.n
    found = {split: {"correct": correct, "n": n, "accuracy": correct / n} for split, (correct, n) in scored.items()}
    return {"expert": expert, **found, "warning": far_above(scored["test"], scored["val"])}
