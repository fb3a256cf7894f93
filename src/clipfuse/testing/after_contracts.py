"""What rules promise that learn for each task on a merged encoder."""

import tempfile
from dataclasses import replace
from pathlib import Path

from clipfuse.fusion.merge import merge
from clipfuse.testing.case import Case, check_finite, check_same, fail
from clipfuse.testing.contracts import contract
from clipfuse.testing.models import random_models


@contract(lambda case: case.rule.kind == "after")
def for_each_task(case: Case) -> None:
    """The merged weights stay as they are, and each expert's task gets finite tensors, the same ones on disk."""
    models = random_models(0.3)
    check_same(case.merged(models), case.merged(models, replace(case.chain, after=None)))
    found = merge(case.pool(models), case.chain, data=case.data)
    for tensors in found.task_tensors.values():
        check_finite(dict(tensors))
    if set(found.task_tensors) != set(case.tasks):
        fail(f"it gives tensors for {sorted(found.task_tensors)}, the tasks are {sorted(case.tasks)}")
    with tempfile.TemporaryDirectory() as folder:
        stored = merge(case.pool(models), case.chain, data=case.data, out=Path(folder, "merged"))
        for task, tensors in found.task_tensors.items():
            check_same(dict(stored.task_tensors[task]), dict(tensors), where=f"{task}: ")
