"""Records as an evaluation makes them, without one."""

from collections.abc import Mapping
from typing import Any

from clipfuse.evaluate import Record
from clipfuse.evaluate.metrics import wilson
from clipfuse.evaluate.record import environment


def made_record(task: str, correct: int, n: int, recipe: Mapping[str, Any] | None = None, **facts: Any) -> Record:
    """A record of a merged model on a data set of the hub."""
    found: dict[str, Any] = {
        "model": "ties_merging",
        "role": "merged",
        "recipe": recipe,
        "source": None,
        "base": "openai/clip-vit-base-patch32",
        "parameters": 10,
        "task": task,
        "split": "test",
        "classes": 2,
        "data": {"hub_dataset": f"lab/{task}", "config": "default", "revision": "a1" * 20, "split": "test"},
        "fingerprint": "f" * 64,
        "limit": None,
        "n": n,
        "correct": correct,
        "top5": n,
        "accuracy": correct / n,
        "interval": wilson(correct, n),
        "loss": 0.5 * n,
        "ece": 0.1,
        "per_class": [[n, correct]],
        "dtype": "float32",
        "batch_size": 64,
        "environment": environment(1.0, "cpu"),
    }
    return Record(**(found | facts))
