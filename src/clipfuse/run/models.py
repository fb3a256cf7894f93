"""Evaluating models that are there already: merged folders, experts, full CLIPs."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipfuse.checkpoints.applied import applied
from clipfuse.checkpoints.checkpoint import open_checkpoint
from clipfuse.checkpoints.expert_facts import read_facts
from clipfuse.checkpoints.geometry import find_geometry
from clipfuse.checkpoints.hashes import compute_in_background, known_hash
from clipfuse.checkpoints.ledger import Ledger, keep_ledger
from clipfuse.checkpoints.locate import Located, is_remote, local_path
from clipfuse.checkpoints.lora import is_adapter, other_base, read_adapter_config
from clipfuse.checkpoints.writer import new_folder
from clipfuse.config import parse
from clipfuse.data import Corruption
from clipfuse.errors import ConfigError, ModelError
from clipfuse.evaluate import Candidate, Record, Score
from clipfuse.fusion.merged import read_recipe
from clipfuse.fusion.task_tensors import TASK_TENSORS, TaskTensors, bytes_of, read_task_tensors
from clipfuse.models.build import is_full_clip
from clipfuse.models.clip_base import ClipBase, known_base, open_base
from clipfuse.models.encoder import Encoder, build_encoder, check_fits, identity_of_files
from clipfuse.models.per_task import PerTaskEncoder
from clipfuse.pool import PRETRAINED
from clipfuse.pool.clip_vision import locate_all
from clipfuse.progress import Stage, silent
from clipfuse.report import Table
from clipfuse.report.write import write_report
from clipfuse.run.bench import Bench, open_bench
from clipfuse.run.config import EvaluateConfig
from clipfuse.run.records import is_expert, record_of, save_predictions, with_references
from clipfuse.run.tasks import find_tasks
from clipfuse.tasks import Task, TaskPoolConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Results:
    """Records, and the scores behind them by corruption; `first` of several processes is the one that writes."""

    first: bool
    records: list[Record]
    scores: list[tuple[Corruption | None, list[Score]]]
    ledger: Ledger | None = None
    """What was opened."""


def evaluate_models(models: Sequence[str], tree: Mapping[str, Any], stage: Stage = silent) -> list[Record]:
    """The records of `score_models`."""
    return score_models(models, tree, stage).records


def score_models(models: Sequence[str], tree: Mapping[str, Any], stage: Stage = silent) -> Results:
    """Score models (folders or hub ids) on a task pool; `tree` has the keys of `EvaluateConfig`.

    The text encoder, projection and processor come from the merged folder's recipe, else `base`, else the one known
    base of the geometry.

    Raises:
        ConfigError: keys or values that `EvaluateConfig` does not take.
        ModelError: no base is known, or the models belong to different ones.
        LocateError, CheckpointError, TaskError: what cannot be found or read.
    """
    config = parse(EvaluateConfig, tree, "evaluate")
    with keep_ledger(config.locked) as ledger:
        return replace(score_located(models, config, stage), ledger=ledger)


def score_located(models: Sequence[str], config: EvaluateConfig, stage: Stage) -> Results:
    """`score_models` with a checked configuration."""
    if config.calibrate and config.split == "val":
        raise ConfigError("calibrate: fits on val; score another split than that, or leave it out")
    taskpool = parse(TaskPoolConfig, config.taskpool, "taskpool")
    located = locate_all({model: model for model in models})
    bases = {model: base_of(at, config.base or taskpool.base) for model, at in located.items()}
    if len(set(bases.values())) > 1:
        found = ", ".join(f"{model}: {ref}" for model, ref in bases.items())
        raise ModelError(f"the models belong to different bases ({found}); evaluate them apart, or give base=")
    tasks, names, base = find_tasks(taskpool), short_names(models), open_base(bases[models[0]])
    candidates = [candidate(names[model], at, base) for model, at in located.items()]
    check_known(candidates, tasks)
    bench = open_bench(tasks, base.ref, (config.split,), config, stage)
    origins = {names[model]: origin(at, names[model], bench) for model, at in located.items()}
    on_val = bench.on_val(candidates, stage)
    results = Results(bench.scoring.workers.first, [], [])
    for corruption in bench.corruptions:
        scores = bench.score(candidates, config.split, stage, corruption, on_val=on_val)
        exact = bench.in_float32(candidates, config.split, stage, corruption)
        for score in scores:
            which = score.model, score.task
            of = {"corruption": corruption, "exact": exact.get(which), "val": on_val.get(which)}
            results.records.append(record_of(bench, score, config.split, **of, **origins[score.model]))
        results.scores.append((corruption, scores))
    return replace(results, records=with_references(results.records, bench.tasks))


def write_results(folder: Path, results: Results, tables: Sequence[Table], overwrite: bool = False) -> None:
    """A new folder with reports, records and predictions of all models that were evaluated. Raises OutputError."""
    with new_folder(folder, overwrite) as temporary:
        subjects = list(dict.fromkeys(record.model for record in results.records))
        write_report(temporary, tables, results.records, subjects)
        for corruption, scores in results.scores:
            save_predictions(temporary / "predictions", scores, corruption)
        if results.ledger:
            results.ledger.write(temporary)


def base_of(at: Located, given: str | None) -> str:
    """The base of a located model: as its recipe says, else `given`, else as its fine-tuning says, else a full CLIP
    itself, else the known one.

    A recipe's base that is a tower alone (the task-arithmetic authors') has no text side: then the others are asked.

    Raises:
        ModelError: none is known, or the recipe and `given` name different ones.
    """
    recipe = read_recipe(at.folder) if at.folder.is_dir() else None
    members = recipe["pool"] if recipe else []
    own = next((m["path"] for m in members if m["name"] == PRETRAINED and m.get("path")), None)
    if own is not None and (is_remote(own) or is_full_clip(local_path(own))):
        if given not in (None, own):
            raise ModelError(f"{at.ref}: was merged from the base {own}; base={given} is another")
        return own
    if given is not None:
        if other := other_base(at.folder, given):
            log.warning("%s: is an adapter of %s; base=%s is another", at.ref, other, given)
        return given
    if facts := read_facts(at.folder):
        path = facts["base"]["path"]
        if is_remote(path) or is_full_clip(local_path(path)):
            return path
    if is_full_clip(at.folder):
        return at.ref
    if lost := next((m["local"] for m in members if m["name"] == PRETRAINED and m.get("local")), None):
        raise ModelError(f"{at.ref}: was merged from a local base, {lost!r}; name it: base=./folder")
    if is_adapter(at.folder):
        config = read_adapter_config(at.folder)
        if named := config.base_model_name_or_path:
            return f"{named}@{config.revision}" if config.revision and "@" not in named else named
        raise ModelError(f"{at.ref}: its adapter_config.json names no base; give base=")
    return known_base(find_geometry(at.folder, open_checkpoint(at.folder, at.ref)), at.ref)


def tower_of(at: Located, given: str | None) -> str:
    """What a model was fine-tuned or merged from: its recipe's base, whatever that stores, else as `base_of`."""
    recipe = read_recipe(at.folder) if at.folder.is_dir() else None
    members = recipe["pool"] if recipe else []
    own = next((m["path"] for m in members if m["name"] == PRETRAINED and m.get("path")), None)
    return given or (own if own and (is_remote(own) or local_path(own).exists()) else base_of(at, None))


def candidate(name: str, at: Located, base: ClipBase) -> Candidate:
    """A located model on a base, opened and checked, its weights not read. Raises ModelError, CheckpointError."""
    opened = open_checkpoint(at.folder, at.ref, base.checkpoint)
    modules, beside = modules_of(at), files_beside(at)
    compute_in_background((*opened.files, *beside))
    checkpoint = applied(base.checkpoint, opened)
    geometry = base.geometry if opened.is_delta else find_geometry(at.folder, checkpoint)
    check_fits(geometry, base, at.ref)
    if geometry.linearised and (told := other_origin(at, base)):
        raise ModelError(told)

    def load() -> Encoder:
        encoder = build_encoder(checkpoint.with_projection(), geometry, base)
        return PerTaskEncoder(encoder, modules) if modules else encoder

    def identity() -> str:
        return identity_of_files(checkpoint, geometry, base, beside)

    size = sum(checkpoint.spec(n).numel for n in checkpoint)
    memory = 4 * size * (2 if geometry.linearised else 1) + bytes_of(modules)
    return Candidate(name, load, memory, size, frozenset(modules) or None, identity)


def modules_of(at: Located) -> TaskTensors:
    """Modules for each task of a located merge, if it has any. Raises CheckpointError if they are not there."""
    recipe = read_recipe(at.folder) if at.folder.is_dir() else None
    return read_task_tensors(at.folder, recipe) if recipe else {}


def files_beside(at: Located) -> tuple[Path, ...]:
    """What a located model's features depend on besides its weights."""
    return (at.folder / TASK_TENSORS,) if modules_of(at) else ()


def check_known(candidates: Sequence[Candidate], tasks: Sequence[Task]) -> None:
    """Raises ModelError for a model that knows none of the tasks."""
    names = [task.name for task in tasks]
    for found in candidates:
        if found.tasks is not None and found.tasks.isdisjoint(names):
            known = ", ".join(sorted(found.tasks))
            raise ModelError(f"{found.name}: has modules for {known} only, and is to be scored on {', '.join(names)}")


def other_origin(at: Located, base: ClipBase) -> str | None:
    """In words, if an expert says that it was fine-tuned from another base."""
    facts = read_facts(at.folder)
    if not facts or facts["base"]["identity"] == base.identity:
        return None
    return f"{at.ref}: was fine-tuned from {facts['base']['path']} as it was then; {base.ref} is another base"


def origin(at: Located, name: str, bench: Bench) -> Mapping[str, Any]:
    """Role, recipe or source, and uses, for the record of a located model."""
    recipe = read_recipe(at.folder) if at.folder.is_dir() else None
    opened = open_checkpoint(at.folder, at.ref, bench.base.checkpoint)
    files = {file.name: known_hash(file) for file in (*opened.files, *files_beside(at))}
    source = {"path": at.ref, "revision": at.revision, "files": files}
    if recipe:
        pool = [with_hashes(member) for member in recipe["pool"]]
        return {
            "role": "merged",
            "recipe": recipe | {"pool": pool},
            "source": source,
            "uses": recipe["uses"],
            "seen": recipe.get("data", ()),
        }
    if at.ref == bench.base.ref:
        return {"role": "base", "source": source}
    if told := other_origin(at, bench.base):
        log.warning(told)
    return {"role": "expert" if any(is_expert(name, task) for task in bench.tasks) else "other", "source": source}


def with_hashes(member: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recipe's member with the hashes that were not known when it was written and are now."""
    if not member.get("path") or is_remote(member["path"]):
        return member
    at = local_path(member["path"])
    folder = at if at.is_dir() else at.parent
    files = {n: h or (known_hash(folder / n) if (folder / n).is_file() else None) for n, h in member["files"].items()}
    return {**member, "files": files}


def short_names(models: Sequence[str]) -> dict[str, str]:
    """Last parts of paths and ids where they differ, else the whole."""
    short = {model: Path(model.rstrip("/")).name for model in models}
    return short if len(set(short.values())) == len(short) else {model: model for model in models}
