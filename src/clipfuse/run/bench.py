"""What models are measured on: tasks, splits, heads and preprocessing of one base; and measuring merges beside them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from clipfuse.cache import cache_folder
from clipfuse.checkpoints.hashes import compute_in_background
from clipfuse.data import Preprocess, Split, open_split, read_preprocess
from clipfuse.errors import ConfigError
from clipfuse.evaluate import Candidate, Record, Score, evaluate
from clipfuse.evaluate.metrics import wilson
from clipfuse.evaluate.record import environment
from clipfuse.fusion.merge import as_dtype, merge
from clipfuse.fusion.merged import Merged
from clipfuse.fusion.registry import Chain
from clipfuse.heads import Head, zero_shot_heads
from clipfuse.models.encoder import ClipBase, VisionEncoder, open_base
from clipfuse.pool import PRETRAINED, HuggingFaceClipVisionPool
from clipfuse.run.config import MeasureConfig
from clipfuse.run.progress import Stage
from clipfuse.tasks import Task, TaskPoolConfig, catalog, find_task, fold, read_task
from clipfuse.tiny import materialise

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bench:
    """One base's heads, and the images of some tasks' splits."""

    base: ClipBase
    tasks: tuple[Task, ...]
    splits: Mapping[str, tuple[Split, ...]]
    """By name of the split, in the tasks' order."""
    heads: Mapping[str, Head]
    preprocess: Preprocess
    device: torch.device
    batch_size: int
    limit: int | None
    dtype: torch.dtype = torch.float32
    """Of the forward passes."""

    def score(self, candidates: Sequence[Candidate], split: str, stage: Stage) -> list[Score]:
        """Scores of candidates on every task's `split`."""
        splits = self.splits[split]
        images = sum(len(s) for s in splits for c in candidates if c.tasks is None or s.task in c.tasks)
        with stage(f"evaluate on {split}", images, "img") as told:
            return evaluate(
                candidates, splits, self.heads, self.preprocess,
                batch_size=self.batch_size, device=self.device, progress=told,
            )  # fmt: skip

    def record(self, score: Score, split: str, role: Literal["base", "expert", "merged", "other"], **of: Any) -> Record:
        """A score with all that is needed to get it again; `of` gives recipe or source, and uses."""
        task = next(task for task in self.tasks if task.name == score.task)
        return Record(
            model=score.model,
            role=role,
            recipe=of.get("recipe"),
            source=of.get("source"),
            base=self.base.ref,
            parameters=score.parameters,
            task=score.task,
            split=split,
            classes=len(task.classes),
            fingerprint=score.fingerprint,
            limit=self.limit,
            n=score.n,
            correct=score.correct,
            accuracy=score.correct / score.n,
            interval=wilson(score.correct, score.n),
            loss=score.loss,
            uses=tuple(of.get("uses", ())),
            dtype=str(self.dtype).removeprefix("torch."),
            batch_size=self.batch_size,
            environment=environment(score.seconds, str(self.device)),
        )


def find_tasks(taskpool: TaskPoolConfig) -> list[Task]:
    """The tasks of a pool; a list of names or paths."""
    return [get_task(name) for name in taskpool.tasks]


def get_task(name: str) -> Task:
    """A task by name or path; `tiny-…` comes from the offline suite. Raises TaskError with the nearest name."""
    return find_task(name, [tiny_folder()] if fold(name).startswith("tiny_") else [])


def all_tasks() -> list[Task]:
    """Every task that has a name."""
    return [read_task(path) for path in [*catalog().values(), *sorted(tiny_folder().glob("*.yaml"))]]


def tiny_folder() -> Path:
    """The offline suite's tasks, written to the cache when they are first asked for."""
    return materialise(cache_folder("tiny"))


def open_bench(
    tasks: Sequence[Task], base: str, splits: Sequence[str], config: MeasureConfig, dtype: str = "float32"
) -> Bench:
    """Open the splits first (they fail soonest), then the base, then encode the prompts."""
    device = as_device(config.device)
    opened = {name: tuple(open_split(task, name, config.limit, config.seed) for task in tasks) for name in splits}
    clip = open_base(base)
    preprocess = read_preprocess(clip.folder)
    heads = zero_shot_heads(clip, tasks)
    kind = as_dtype(dtype) or torch.float32
    return Bench(clip, tuple(tasks), opened, heads, preprocess, device, config.batch_size, config.limit, kind)


def as_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises ConfigError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device: {name!r} cannot be used ({str(error).splitlines()[0]})") from None
    return device


def measure(
    pool: HuggingFaceClipVisionPool,
    bench: Bench,
    chains: Mapping[str, Chain],
    baselines: Literal["none", "own", "all"],
    stage: Stage,
    folder: Path | None = None,
    dtype: str | None = None,
) -> list[Record]:
    """Merge each chain and score it on the test splits, beside the base and the experts.

    Args:
        chains: What to merge, by name in the table.
        baselines: `own` scores each expert on its own task only, `all` on every task; both score the base.
        folder: Where merged weights, predictions and records go; in memory and nowhere if None.
        dtype: Of the merged weights; the base's by default.
    """
    merged = {}
    for name, chain in chains.items():
        with stage(f"merge {name}", pool.weights.nbytes * chain.passes, "B") as told:
            merged[name] = merge(pool, chain, dtype=dtype, out=folder / "merged" if folder else None, progress=told)
    compute_in_background(file for checkpoint in pool.weights.checkpoints for file in checkpoint.files)
    candidates = baseline_candidates(pool, bench, baselines)
    size = sum(spec.numel for spec in pool.weights.specs.values())
    for name, result in merged.items():
        load = partial(merged_encoder, result, bench)
        candidates.append(Candidate(name, load, 4 * size, size))
    scores = bench.score(candidates, "test", stage)
    records = []
    for score in scores:
        if score.model in merged:
            recipe = {**merged[score.model].recipe, "pool": [pool.describe(m["name"]) for m in pool.weights.members]}
            records.append(bench.record(score, "test", "merged", recipe=recipe, uses=chains[score.model].uses))
        else:
            name = PRETRAINED if score.model == "pre-trained" else score.model
            role = "base" if name == PRETRAINED else "expert"
            records.append(bench.record(score, "test", role, source=pool.describe(name)))
    for score in scores:
        log.info("%s on %s: %d of %d, %.1f s", score.model, score.task, score.correct, score.n, score.seconds)
    records = with_normalised(records)
    if folder:
        save_predictions(folder / "predictions", scores)
    return records


def baseline_candidates(
    pool: HuggingFaceClipVisionPool, bench: Bench, baselines: Literal["none", "own", "all"]
) -> list[Candidate]:
    """The base and the experts as candidates."""
    if baselines == "none":
        return []
    size = sum(spec.numel for spec in pool.weights.specs.values())
    found = []
    for name in ((PRETRAINED,) if pool.has_pretrained else ()) + pool.model_names:
        own = frozenset(task.name for task in bench.tasks if fold(task.name) == fold(name))
        tasks = own if baselines == "own" and name != PRETRAINED else None
        if tasks is None or tasks:
            label = "pre-trained" if name == PRETRAINED else name
            found.append(Candidate(label, partial(expert_encoder, pool, bench, name), 4 * size, size, tasks))
    return found


def merged_encoder(merged: Merged, bench: Bench) -> VisionEncoder:
    return merged.encoder(bench.base).to(bench.device, bench.dtype)


def expert_encoder(pool: HuggingFaceClipVisionPool, bench: Bench, name: str) -> VisionEncoder:
    return VisionEncoder(pool.load_model(name), bench.base).to(bench.device, bench.dtype)


def with_normalised(records: Sequence[Record]) -> list[Record]:
    """Records with accuracy ÷ that of the task's own expert, where the same images were scored with it."""
    own = {r.task: r.accuracy for r in records if r.role == "expert" and fold(r.model) == fold(r.task)}
    return [r.model_copy(update={"normalised": r.accuracy / own[r.task]}) if own.get(r.task) else r for r in records]


def save_predictions(folder: Path, scores: Sequence[Score]) -> None:
    """Predicted labels per image: `<model>/<task>.npy`, (image,) int32."""
    for score in scores:
        place = folder / score.model.replace("/", "_")
        place.mkdir(parents=True, exist_ok=True)
        np.save(place / f"{score.task}.npy", torch.cat(score.predictions).to(torch.int32).numpy())
