"""`quickstart`: base, experts and fused models of the offline suite, on every one of its tasks."""

from collections.abc import Mapping
from typing import Any

from clipfuse.config import parse
from clipfuse.config.presets import load_preset
from clipfuse.evaluate import Record
from clipfuse.fusion.chain import configure
from clipfuse.pool import PRETRAINED, HuggingFaceClipVisionPool
from clipfuse.progress import Stage, silent
from clipfuse.run.bench import open_bench
from clipfuse.run.config import MeasureConfig
from clipfuse.run.measure import Choice, measure
from clipfuse.run.pipeline import choose
from clipfuse.run.tasks import find_tasks
from clipfuse.tasks import TaskPoolConfig

LAMBDAS = [0.2, 0.3, 0.45]
"""Values of λ that the val split chooses from."""

TSV_LAMBDAS = [1.0, 1.25, 1.5]
"""The same for TSV-M, whose sum of truncated task vectors is shorter."""

SHOWN: list[tuple[dict[str, Any], list[str], list[dict[str, Any]]]] = [
    ({"name": "simple_average"}, [], []),
    ({"name": "task_arithmetic", "scaling_factor": LAMBDAS}, [], []),
    ({"name": "task_arithmetic", "scaling_factor": LAMBDAS}, [], [{"name": "lines", "alpha": 0.5, "beta": 1.0}]),
    ({"name": "ties_merging", "scaling_factor": LAMBDAS}, [], []),
    ({"name": "ties_merging", "scaling_factor": LAMBDAS}, ["dare"], []),
    ({"name": "tsv_merging", "scaling_factor": TSV_LAMBDAS}, [], []),
]
"""Methods, edits and finishes of the table."""


def quickstart(tree: Mapping[str, Any] | None = None, stage: Stage = silent) -> list[Record]:
    """Records of the tiny suite's base, fused models, and experts on their own tasks; λ is chosen on the val splits.

    Args:
        tree: The keys of `MeasureConfig`.
        stage: Shows progress.
    """
    config = parse(MeasureConfig, tree or {}, "quickstart")
    pool = HuggingFaceClipVisionPool.from_tree(load_preset("modelpool", "tiny_TA8"))
    tasks = find_tasks(parse(TaskPoolConfig, load_preset("taskpool", "tiny_TA8"), "taskpool"))
    bench = open_bench(tasks, pool.get_model_config(PRETRAINED).ref, ("test", "val"), config, stage=stage)
    choices = []
    for method, edits, finishes in SHOWN:
        chain = configure(method, edits, finishes, config.seed)
        choices.append(choose(pool, bench, chain, stage) if chain.values else Choice(chain))
    return measure(pool, bench, choices, "own", stage)
