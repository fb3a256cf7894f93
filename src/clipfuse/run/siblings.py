"""How the task vectors of experts of one base lie to each other."""

import logging
from collections.abc import Mapping, Sequence

import torch

from clipfuse.checkpoints.expert_facts import read_facts
from clipfuse.errors import ClipfuseError
from clipfuse.pool import PoolView
from clipfuse.pool.clip_vision import HuggingFaceClipVisionPool
from clipfuse.report import Table
from clipfuse.run.finetune import Expert
from clipfuse.stats.norms import grams

log = logging.getLogger(__name__)
MOST = 24
"""Folders beside an expert that are looked at."""


def siblings(experts: Sequence[Expert]) -> Mapping[str, str]:
    """Name → folder of experts and of those beside them that were fine-tuned from the same base, with that base.

    Linearised experts go with linearised ones only.
    """
    first = experts[0]
    assert first.facts is not None
    base, found = first.facts["base"], {expert.name: expert.folder for expert in experts}
    known = {path.absolute() for path in found.values()}
    beside = [path for path in first.folder.absolute().parent.iterdir() if path.is_dir() and path not in known]
    for folder in sorted(beside)[:MOST]:
        facts = read_facts(folder)
        alike = facts and (facts["kind"] == "linearised") == (first.facts["kind"] == "linearised")
        if facts and alike and facts["base"]["identity"] == base["identity"]:
            found.setdefault(folder.name, folder)
    return {"_pretrained_": base["path"], **{name: str(path) for name, path in found.items()}}


def cosines(models: Mapping[str, str]) -> Table | None:
    """Norms and cosines of the task vectors, None where there is nothing to compare or they do not fit together."""
    if len(models) < 3:
        return None
    try:
        pool = HuggingFaceClipVisionPool.from_tree({"models": dict(models)}).weights
        whole = torch.stack(list(grams(PoolView(pool)).values())).sum(0)
    except ClipfuseError as error:
        log.info("no cosines: %s", error)
        return None
    norms = whole.diagonal().sqrt()
    rows = []
    for i, name in enumerate(pool.tasks):
        cells = [f"{float(whole[i, j] / (norms[i] * norms[j]).clamp(min=1e-30)):.3f}" for j in range(len(pool.tasks))]
        rows.append([name, f"{float(norms[i]):.3g}", *cells])
    return Table(["task vector", "norm", *(f"cos {task}" for task in pool.tasks)], rows)
