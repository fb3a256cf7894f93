"""What is learned for each task on a merged encoder, whose weights are final."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from clipfuse.errors import ConfigError, PoolError
from clipfuse.fusion.forward import Forward
from clipfuse.fusion.kept import Kept
from clipfuse.fusion.prepared import Prepared
from clipfuse.fusion.streams import Run
from clipfuse.fusion.task_tensors import TaskTensors


def learn_after(prepared: Prepared, weights: Mapping[str, Tensor]) -> TaskTensors:
    """What the chain's rule `after` learns on the merged `weights` by canonical name; nothing where there is none.

    Experts are seen as they are, before edits.

    Raises:
        ConfigError: the rule gives nothing for an expert, or something for others.
        PoolError: two experts of one task.
    """
    step = prepared.chain.after
    if step is None:
        return {}
    tasks = tasks_of_experts(prepared)
    view = replace(prepared.view, edits=(), grain="element", progress=None)
    with Run.open(view, prepared.lent_after, kept_after(prepared, weights)) as run:
        forward = Forward(run)
        forward.load(weights)
        found: Mapping[str, Mapping[str, Tensor]] = step.rule.function(view, step.cfg, run, forward)
    prepared.files.update(run.files)
    if odd := sorted(found.keys() ^ tasks.keys()):
        raise ConfigError(f"{step.rule.name}: gave {'nothing' if odd[0] in tasks else 'tensors'} for {odd[0]}")
    return {tasks[expert]: dict(tensors) for expert, tensors in found.items()}


def tasks_of_experts(prepared: Prepared) -> dict[str, str]:
    """Expert → its task's own name, of what is learned after a merge. Raises PoolError for two experts of one task."""
    found: dict[str, str] = {}
    for (expert, _), seen in (prepared.lent_after.looked if prepared.lent_after else {}).items():
        if other := next((name for name, task in found.items() if task == seen.task and name != expert), None):
            raise PoolError(f"after: {other} and {expert} are both experts of {seen.task}; each task takes one")
        found[expert] = seen.task
    return found


def kept_after(prepared: Prepared, weights: Mapping[str, Tensor]) -> Kept:
    """Where its steps go on: unlike those of the method, they depend on all that made the weights."""
    key = prepared.kept.key
    facts = [prepared.chain.to_tree(), sorted({str(tensor.dtype) for tensor in weights.values()})]
    return replace(prepared.kept, key=key and f"{key}-{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]}")
