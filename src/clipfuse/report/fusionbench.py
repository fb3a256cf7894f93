"""`report.json` in the shape that users of FusionBench parse."""

from collections.abc import Sequence
from typing import Any

from clipfuse.evaluate.record import Record


def program_report(name: str, records: Sequence[Record]) -> dict[str, Any]:
    """`{model_info, task: {accuracy, loss}, average: {accuracy, loss}}` of one row; losses are means over images.

    Args:
        name: Of the model, with what was done to the images.
        records: One a task.
    """
    report: dict[str, Any] = {
        "model_info": {
            "name": name,
            "trainable_params": records[0].parameters,
            "all_params": records[0].parameters,
            "trainable_percentage": 1.0,
        }
    }
    for record in records:
        report[record.task] = {"accuracy": record.accuracy, "loss": record.loss / record.n}
    scores = [report[record.task] for record in records]
    report["average"] = {key: sum(score[key] for score in scores) / len(scores) for key in ("accuracy", "loss")}
    return report
