"""What models are measured on: tasks, splits, heads and preprocessing of one base; and measuring merges beside them."""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from clipfuse.cache import cache_folder
from clipfuse.checkpoints.hashes import compute_in_background
from clipfuse.data import Preprocess, Split, open_split, read_preprocess
from clipfuse.errors import ConfigError, TaskError
from clipfuse.evaluate import Candidate, Record, Score, evaluate
from clipfuse.evaluate.metrics import wilson
from clipfuse.evaluate.record import environment
from clipfuse.fusion.merge import Sweep, as_dtype, merge
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

BASE = "pre-trained"
"""What the base is called in tables."""


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
    tasks = [get_task(name) for name in taskpool.tasks]
    names = [task.name for task in tasks]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise TaskError(f"taskpool.tasks: {twice!r} is in it twice")
    return tasks


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


@dataclass(frozen=True)
class Choice:
    """A chain to merge; where its λ was chosen, the sweep that has done the work already."""

    chain: Chain
    sweep: Sweep | None = None
    curve: Mapping[float, float] = field(default_factory=dict)
    """Each value's mean accuracy on the val splits."""

    @property
    def title(self) -> str:
        """What a table calls it, with the λ that was chosen."""
        return self.chain.title + (f" λ={self.value:g}" if self.value is not None else "")

    @property
    def value(self) -> float | None:
        """The λ that was chosen, if one was."""
        return self.chain.method.cfg.scaling_factor if self.sweep else None


def measure(
    pool: HuggingFaceClipVisionPool,
    bench: Bench,
    choices: Sequence[Choice],
    baselines: Literal["none", "own", "all"],
    stage: Stage,
    folder: Path | None = None,
    dtype: str | None = None,
) -> list[Record]:
    """Merge each choice and score it on the test splits, beside the base and the experts.

    Args:
        choices: What to merge.
        baselines: `own` scores each expert on its own task only, `all` on every task; both score the base.
        folder: Where merged weights (of one choice), predictions and records go; in memory and nowhere if None.
        dtype: Of the merged weights; the base's by default.
    """
    size = sum(spec.numel for spec in pool.weights.specs.values())
    candidates = baseline_candidates(pool, bench, baselines)
    sources = {candidate.name: candidate.name for candidate in candidates} | {BASE: PRETRAINED}
    merged: dict[str, Merged] = {}
    for choice in choices:
        title = f"{choice.title} (merged)" if choice.title in sources else choice.title
        merged[title] = merge_choice(pool, choice, stage, folder / "merged" if folder else None, dtype)
        candidates.append(Candidate(title, partial(merged_encoder, merged[title], bench), 4 * size, size))
    compute_in_background(file for checkpoint in pool.weights.checkpoints for file in checkpoint.files)
    scores = bench.score(candidates, "test", stage)
    members = [pool.describe(member["name"]) for member in pool.weights.members]
    records = []
    for score in scores:
        log.info("%s on %s: %d of %d, %.1f s", score.model, score.task, score.correct, score.n, score.seconds)
        if score.model in merged:
            recipe = {**merged[score.model].recipe, "pool": members}
            records.append(bench.record(score, "test", "merged", recipe=recipe, uses=recipe["uses"]))
        else:
            name = sources[score.model]
            source = next(member for member in members if member["name"] == name)
            records.append(bench.record(score, "test", "base" if name == PRETRAINED else "expert", source=source))
    if folder:
        save_predictions(folder / "predictions", scores)
    return with_normalised(records, bench.tasks)


def merge_choice(
    pool: HuggingFaceClipVisionPool, choice: Choice, stage: Stage, out: Path | None, dtype: str | None
) -> Merged:
    """The merged model of a choice, written to `out` if that is given."""
    if choice.sweep:
        return choice.sweep.merged(choice.chain, out)
    chain = choice.chain
    with stage(f"merge {chain.method.rule.name}", pool.weights.nbytes * chain.passes, "B") as told:
        return merge(pool, chain, dtype=dtype, out=out, progress=told)


def baseline_candidates(
    pool: HuggingFaceClipVisionPool, bench: Bench, baselines: Literal["none", "own", "all"]
) -> list[Candidate]:
    """The base and the experts as candidates."""
    if baselines == "none":
        return []
    size = sum(spec.numel for spec in pool.weights.specs.values())
    found = []
    for name in ((PRETRAINED,) if pool.has_pretrained else ()) + pool.model_names:
        own = frozenset(task.name for task in bench.tasks if task.answers_to(name))
        tasks = own if baselines == "own" and name != PRETRAINED else None
        if tasks is None or tasks:
            label = BASE if name == PRETRAINED else name
            found.append(Candidate(label, partial(expert_encoder, pool, bench, name), 4 * size, size, tasks))
    return found


def merged_encoder(merged: Merged, bench: Bench) -> VisionEncoder:
    return merged.encoder(bench.base).to(bench.device, bench.dtype)


def expert_encoder(pool: HuggingFaceClipVisionPool, bench: Bench, name: str) -> VisionEncoder:
    return VisionEncoder(pool.load_model(name), bench.base).to(bench.device, bench.dtype)


def with_normalised(records: Sequence[Record], tasks: Sequence[Task]) -> list[Record]:
    """Records with accuracy ÷ that of the task's own expert, where the same images were scored with it."""
    named = {task.name: task for task in tasks}
    own = {r.task: r.accuracy for r in records if r.role == "expert" and named[r.task].answers_to(r.model)}
    return [r.model_copy(update={"normalised": r.accuracy / own[r.task]}) if own.get(r.task) else r for r in records]


def save_predictions(folder: Path, scores: Sequence[Score]) -> None:
    """Predicted labels per image: `<model>/<task>.npy`, (image,) int32."""
    for score in scores:
        place = folder / file_name(score.model)
        place.mkdir(parents=True, exist_ok=True)
        np.save(place / f"{file_name(score.task)}.npy", torch.cat(score.predictions).to(torch.int32).numpy())


def file_name(name: str) -> str:
    """A model's or task's name as a file name."""
    return re.sub(r"[^\w =+()-]", "_", name)
