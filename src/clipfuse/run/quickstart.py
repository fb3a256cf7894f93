"""`quickstart`: base, experts and fused models of the offline suite, on every one of its tasks."""

from collections.abc import Mapping
from typing import Any

from clipfuse.config import load_preset, parse
from clipfuse.evaluate import Record
from clipfuse.fusion.registry import Chain, configure
from clipfuse.pool import PRETRAINED, HuggingFaceClipVisionPool
from clipfuse.run.bench import find_tasks, measure, open_bench
from clipfuse.run.config import MeasureConfig
from clipfuse.run.pipeline import choose
from clipfuse.run.progress import Stage, silent
from clipfuse.tasks import TaskPoolConfig

LAMBDAS = [0.2, 0.4, 0.6, 0.8, 1.0]
"""Values of λ that the val split chooses from."""

SHOWN: dict[str, tuple[dict[str, object], list[str]]] = {
    "simple_average": ({"name": "simple_average"}, []),
    "slerp": ({"name": "slerp"}, []),
    "task_arithmetic": ({"name": "task_arithmetic", "scaling_factor": LAMBDAS}, []),
    "ties_merging": ({"name": "ties_merging", "scaling_factor": LAMBDAS}, []),
    "magmax": ({"name": "magmax", "scaling_factor": LAMBDAS}, []),
    "dare + ties_merging": ({"name": "ties_merging", "scaling_factor": LAMBDAS}, ["dare"]),
}
"""Name in the table → method and edits."""


def quickstart(tree: Mapping[str, Any] | None = None, stage: Stage = silent) -> list[Record]:
    """Records of the tiny suite's base, experts and fused models; λ is chosen on the val splits.

    Args:
        tree: The keys of `MeasureConfig`.
        stage: Shows progress.
    """
    config = parse(MeasureConfig, tree or {}, "quickstart")
    pool = HuggingFaceClipVisionPool.from_tree(load_preset("modelpool", "tiny"))
    tasks = find_tasks(parse(TaskPoolConfig, load_preset("taskpool", "tiny"), "taskpool"))
    bench = open_bench(tasks, pool.get_model_config(PRETRAINED).path, ("test", "val"), config)
    chains: dict[str, Chain] = {}
    for title, (method, edits) in SHOWN.items():
        chain = configure(method, edits, seed=config.seed)
        if chain.scaling_factors:
            chain, value = choose(pool, bench, chain, stage)
            title = f"{title} λ={value:g}"
        chains[title] = chain
    return measure(pool, bench, chains, "all", stage)
