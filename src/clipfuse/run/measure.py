"""Merging and scoring: choices of methods, beside the base and the experts."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from clipfuse.checkpoints.hashes import compute_in_background
from clipfuse.evaluate import Candidate, Record
from clipfuse.fusion.chain import Chain
from clipfuse.fusion.merge import merge
from clipfuse.fusion.merged import Merged
from clipfuse.fusion.sweep import Sweep
from clipfuse.fusion.task_tensors import bytes_of
from clipfuse.models.encoder import Encoder, VisionEncoder, build_encoder, identity_of_files
from clipfuse.pool import PRETRAINED, HuggingFaceClipVisionPool
from clipfuse.progress import Stage, silent
from clipfuse.run.bench import Bench
from clipfuse.run.records import Role, record_of, save_predictions, with_references

log = logging.getLogger(__name__)

WORK: Mapping[str, Any] = MappingProxyType({})
"""Nothing said of dtype, memory and device of merges."""

BASE = "pre-trained"
"""What the base is called in tables."""


@dataclass(frozen=True)
class Choice:
    """A chain to merge; where a setting of it was chosen, the sweep that has done the work already."""

    chain: Chain
    sweep: Sweep | None = None
    curve: Mapping[float, float] = field(default_factory=dict)
    """Each value's mean accuracy on the val splits."""
    note: str = ""
    """What tells it from another choice of the run."""

    @property
    def title(self) -> str:
        """What a table calls it, with the value that was chosen."""
        value = f"{self.chain.symbol}={self.value:g}" if self.value is not None else ""
        return " ".join(part for part in (self.chain.title, value, self.note) if part)

    @property
    def folder(self) -> str:
        """Where a run puts its weights: `merged`, or `merged_on_val` where there are several."""
        return "_".join(["merged", *self.note.split()])

    @property
    def value(self) -> float | None:
        """The value that was chosen, if one was."""
        return getattr(self.chain.method.cfg, self.chain.swept) if self.sweep else None


def measure(
    pool: HuggingFaceClipVisionPool,
    bench: Bench,
    choices: Sequence[Choice],
    baselines: Literal["none", "own", "all"],
    stage: Stage,
    folder: Path | None = None,
    work: Mapping[str, Any] = WORK,
) -> list[Record]:
    """Merge each choice and score it on the test splits, beside the base and the experts.

    Args:
        choices: What to merge.
        baselines: `own` scores each expert on its own task only, `all` on every task; both score the base.
        folder: Where merged weights, predictions and records go; in memory and nowhere if None.
        work: `dtype`, `memory` and `device` of merges.
    """
    size, wide = sizes(pool)
    candidates = baseline_candidates(pool, bench, baselines)
    sources = {candidate.name: candidate.name for candidate in candidates} | {BASE: PRETRAINED}
    merged: dict[str, Merged] = {}
    for choice in choices:
        title = f"{choice.title} (merged)" if choice.title in sources else choice.title
        merged[title] = merge_choice(pool, choice, stage, folder / choice.folder if folder else None, work)
        modules = merged[title].task_tensors
        opened = partial(merged_encoder, merged[title], bench)
        candidates.append(Candidate(title, opened, wide + bytes_of(modules), size, frozenset(modules) or None))
    compute_in_background(file for checkpoint in pool.weights.checkpoints for file in checkpoint.files)
    on_val = bench.on_val(candidates, stage)
    records: list[Record] = []
    for corruption in bench.corruptions:
        scores = bench.score(candidates, "test", stage, corruption, on_val=on_val)
        exact = bench.in_float32(candidates, "test", stage, corruption)
        members = [pool.describe(member["name"]) for member in pool.weights.members]
        for score in scores:
            log.info("%s on %s: %d of %d, %.1f s", score.model, score.task, score.correct, score.n, score.seconds)
            which = score.model, score.task
            of: dict[str, Any] = {"corruption": corruption, "exact": exact.get(which), "val": on_val.get(which)}
            if score.model in merged:
                recipe = {**merged[score.model].recipe, "pool": members}
                role: Role = "merged"
                of |= {"recipe": recipe, "uses": recipe["uses"], "seen": recipe.get("data", ())}
            else:
                name = sources[score.model]
                role = "base" if name == PRETRAINED else "expert"
                of |= {"source": next(member for member in members if member["name"] == name)}
            records.append(record_of(bench, score, "test", role, **of))
        if folder:
            save_predictions(folder / "predictions", scores, corruption)
    return with_references(records, bench.tasks)


def merge_choice(
    pool: HuggingFaceClipVisionPool,
    choice: Choice,
    stage: Stage,
    out: Path | None = None,
    work: Mapping[str, Any] = WORK,
) -> Merged:
    """The merged model of a choice, written to `out` if that is given."""
    chain = choice.chain
    if choice.sweep and choice.value is not None:
        return choice.sweep.merged(choice.value, out, chain.chosen_on, chain.chosen_data)
    with merging(stage, pool, chain) as told:
        return merge(pool, chain, out=out, progress=told, **work)


def merging(
    stage: Stage, pool: HuggingFaceClipVisionPool, chain: Chain, how: str = ""
) -> AbstractContextManager[Callable[..., None]]:
    """Shows the bytes that a merge reads; nothing where its method looks at images, as its steps are shown then."""
    shown = silent if chain.looks else stage
    return shown(f"merge {chain.method.rule.name}{how}", pool.weights.nbytes * chain.passes, "B")


def baseline_candidates(
    pool: HuggingFaceClipVisionPool, bench: Bench, baselines: Literal["none", "own", "all"]
) -> list[Candidate]:
    """The base and the experts as candidates."""
    if baselines == "none":
        return []
    size, wide = sizes(pool)
    found = []
    for name in ((PRETRAINED,) if pool.has_pretrained else ()) + pool.model_names:
        own = frozenset(task.name for task in bench.tasks if task.answers_to(name))
        tasks = own if baselines == "own" and name != PRETRAINED else None
        if tasks is None or tasks:
            label = BASE if name == PRETRAINED else name
            opened = partial(expert_encoder, pool, bench, name)
            identity = partial(expert_identity, pool, bench, name)
            found.append(Candidate(label, opened, 4 * size if name == PRETRAINED else wide, size, tasks, identity))
    return found


def sizes(pool: HuggingFaceClipVisionPool) -> tuple[int, int]:
    """Parameters of a tower, and bytes of one that is loaded; a linearised one holds θ0 and τ."""
    size = sum(spec.numel for spec in pool.weights.specs.values())
    geometry = pool.weights.geometry
    return size, 4 * size * (2 if geometry and geometry.linearised else 1)


def merged_encoder(merged: Merged, bench: Bench) -> Encoder:
    return merged.encoder(bench.base)


def expert_encoder(pool: HuggingFaceClipVisionPool, bench: Bench, name: str) -> VisionEncoder:
    return build_encoder(pool.full(name).with_projection(), pool.geometry(name), bench.base)


def expert_identity(pool: HuggingFaceClipVisionPool, bench: Bench, name: str) -> str:
    return identity_of_files(pool.full(name), pool.geometry(name), bench.base)
