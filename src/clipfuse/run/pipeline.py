"""`run`: configuration → pool → merge → evaluation → report, in one folder."""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from clipfuse.checkpoints.ledger import Ledger, keep_ledger
from clipfuse.checkpoints.writer import check_output, new_folder, write_text
from clipfuse.config import parse
from clipfuse.errors import ConfigError
from clipfuse.evaluate import Record
from clipfuse.evaluate.sweep import sweep_candidates
from clipfuse.fusion.chain import Chain, configure
from clipfuse.fusion.engine import check_chain
from clipfuse.fusion.kept import states_held
from clipfuse.fusion.lent import Lender
from clipfuse.fusion.loading import load_plugins
from clipfuse.fusion.merge import as_dtype, look_at, merge_device
from clipfuse.fusion.sweep import sweep
from clipfuse.pool import HuggingFaceClipVisionPool
from clipfuse.progress import Stage, silent
from clipfuse.report import Table, results_tables
from clipfuse.report.write import write_report
from clipfuse.run.bench import Bench, open_bench
from clipfuse.run.config import RunConfig
from clipfuse.run.lend import TaskLender, base_for
from clipfuse.run.measure import WORK, Choice, measure, merging
from clipfuse.run.tasks import find_tasks
from clipfuse.tasks import TaskPoolConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a run left: its folder, its records, their tables, and the value that was chosen, if one was."""

    folder: Path
    records: list[Record]
    tables: list[Table]
    chosen: float | None


def run(tree: Mapping[str, Any], stage: Stage = silent) -> RunResult:
    """Merge, evaluate, and write a run's folder: config, merged weights, records, predictions, report, log.

    Args:
        tree: The keys of `RunConfig`.
        stage: Shows progress.

    Raises:
        ClipfuseError: one line; nothing is left half-written.
    """
    config = parse(RunConfig, tree, "run")
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise ConfigError("run: is for one process; merge first, then torchrun … -m clipfuse evaluate merged/")
    chains = chains_of(config)
    now = f"{datetime.now():%Y-%m-%d_%H%M%S_%f}"[:-3]
    folder = Path(config.out or f"runs/{now}_{chains[0].method.rule.name}")
    check_output(folder, config.overwrite)
    with keep_ledger(config.locked) as ledger:
        pool, bench, lender = open_run(config, chains, stage)
        check_output(folder, config.overwrite, [file for model in pool.weights.checkpoints for file in model.files])
        return work(config, chains, folder, pool, bench, lender, ledger, stage)


def work(
    config: RunConfig,
    chains: Sequence[Chain],
    folder: Path,
    pool: HuggingFaceClipVisionPool,
    bench: Bench,
    lender: Lender,
    ledger: Ledger,
    stage: Stage,
) -> RunResult:
    """A run whose parts are open: choose, merge, measure, write."""
    with states_held(), new_folder(folder, config.overwrite) as temporary, log_to(temporary / "log.txt"):
        resolved = config.model_dump(mode="json", exclude={"out", "overwrite", "locked"}) | chains[0].to_tree()
        if len(chains) > 1:
            resolved["method"]["images"] = [chain.method.cfg.images for chain in chains]
        write_text(temporary / "config.yaml", to_yaml(resolved))
        how = {"dtype": config.dtype, "memory": config.memory, "device": merge_device(config.device), "data": lender}
        choices = [choose(pool, bench, chain, stage, how) if chain.values else Choice(chain) for chain in chains]
        if len(choices) > 1:
            choices = [replace(choice, note=f"on {choice.chain.method.cfg.images}") for choice in choices]
        records = measure(pool, bench, choices, config.baselines, stage, temporary, how)
        remarks = [remark for choice in choices for remark in selection(choice)]
        tables = results_tables(records, remarks, config.published)
        merged = dict.fromkeys(record.model for record in records if record.role == "merged")
        write_report(temporary, tables, records, list(merged))
        ledger.write(temporary)
    return RunResult(folder, records, tables, choices[0].value)


def selection(choice: Choice) -> list[str]:
    """How a value was chosen, for the notes of the table."""
    curve = ", ".join(f"{value:g}: {100 * mean:.1f}" for value, mean in choice.curve.items())
    return [f"{choice.chain.swept} by mean accuracy on val: {curve}; chosen: {choice.value:g}."] if choice.curve else []


def chains_of(config: RunConfig) -> list[Chain]:
    """The chain of a run; several where `method.images` lists splits, to report what each of them leads to."""
    images = config.method.get("images")
    if not isinstance(images, (list, tuple)):
        return [chain_of(config)]
    if not images or len(set(images)) < len(images):
        raise ConfigError("method.images: takes a split, or a list of different ones as in method.images=[val,test]")
    each = [{**config.method, "images": split} for split in images]
    return [chain_of(config.model_copy(update={"method": method})) for method in each]


def chain_of(config: RunConfig) -> Chain:
    """The checked method with edits and finishes, plug-ins loaded. Raises ConfigError."""
    load_plugins(config.plugins)
    chain = configure(config.method, config.edits, config.finishes, config.seed, config.after)
    if chain.values and config.select is None:
        count = len(chain.values)
        raise ConfigError(
            f"method.{chain.swept}: has {count} values; choose among them on the val split with select=val"
        )
    if config.select and not chain.values:
        raise ConfigError(f"select={config.select}: there is nothing to choose; method.{chain.swept} has one value")
    return chain


def open_run(
    config: RunConfig, chains: Sequence[Chain], stage: Stage
) -> tuple[HuggingFaceClipVisionPool, Bench, Lender]:
    """Everything that can fail before weights are computed with: tasks, pool, fit of the two, splits, heads."""
    as_dtype(config.dtype)
    pool = HuggingFaceClipVisionPool.from_tree(config.modelpool)
    taskpool = parse(TaskPoolConfig, config.taskpool, "taskpool")
    tasks = find_tasks(taskpool)
    base = base_for(pool, taskpool)
    lender = TaskLender(tasks, base, config, stage)
    view = look_at(pool.weights, memory=config.memory, device=merge_device(config.device))
    for chain in chains:
        check_chain(chain, view, lender)
    splits = ("test", "val") if chains[0].values else ("test",)
    return pool, open_bench(tasks, base, splits, config, stage), lender


def choose(
    pool: HuggingFaceClipVisionPool,
    bench: Bench,
    chain: Chain,
    stage: Stage,
    work: Mapping[str, Any] = WORK,
) -> Choice:
    """The value with the best mean accuracy on the val splits, the smallest of equals. Merges once."""
    with merging(stage, pool, chain, " once") as told:
        found = sweep(pool, chain, progress=told, **work)
    candidates = sweep_candidates(found, bench.base, bench.device)
    scores = bench.score(list(candidates.values()), "val", stage, dtype="float32", joint=None)
    means = {}
    for value, candidate in candidates.items():
        shares = [score.correct / score.n for score in scores if score.model == candidate.name]
        means[value] = sum(shares) / len(shares)
        log.info("%s=%g: %.2f %% on val", chain.swept, value, 100 * means[value])
    best = max(sorted(means), key=lambda value: means[value])
    log.info("%s=%g is chosen", chain.swept, best)
    seen = {s.task: {"rule": "select", "task": s.task, "split": "val", "images": s.n, "labels": s.n} for s in scores}
    looked = tuple(row | {"passes": len(means)} for row in seen.values())
    return Choice(chain.with_value(best, ("val_images", "val_labels"), looked), found, means)


@contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Keep clipfuse's log of what is done inside in a file."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger("clipfuse")
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()


def to_yaml(tree: Mapping[str, Any]) -> str:
    return yaml.safe_dump(json.loads(json.dumps(tree)), sort_keys=False, allow_unicode=True)
