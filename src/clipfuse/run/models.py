"""Evaluating models that are there already: merged folders, experts, full CLIPs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipfuse.checkpoints.checkpoint import open_checkpoint
from clipfuse.checkpoints.geometry import read_geometry
from clipfuse.checkpoints.hashes import compute_in_background, known_hash
from clipfuse.checkpoints.locate import Located, hub_ref, local_path
from clipfuse.checkpoints.writer import new_folder
from clipfuse.config import parse
from clipfuse.data import Corruption
from clipfuse.errors import ModelError
from clipfuse.evaluate import Candidate, Record, Score
from clipfuse.fusion.merged import read_recipe
from clipfuse.models.base import known_base
from clipfuse.models.build import build_vision_model, is_full_clip
from clipfuse.models.encoder import VisionEncoder, identity_of_files
from clipfuse.pool import PRETRAINED
from clipfuse.pool.clip_vision import locate_all
from clipfuse.report import Table
from clipfuse.report.write import write_report
from clipfuse.run.bench import Bench, open_bench
from clipfuse.run.config import EvaluateConfig
from clipfuse.run.progress import Stage, silent
from clipfuse.run.records import record_of, save_predictions, with_references
from clipfuse.run.tasks import find_tasks
from clipfuse.tasks import TaskPoolConfig


@dataclass(frozen=True)
class Results:
    """Records, and the scores behind them by corruption; `first` of several processes is the one that writes."""

    first: bool
    records: list[Record]
    scores: list[tuple[Corruption | None, list[Score]]]


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
    taskpool = parse(TaskPoolConfig, config.taskpool, "taskpool")
    located = locate_all({model: model for model in models})
    bases = {model: base_of(at, config.base or taskpool.base) for model, at in located.items()}
    if len(set(bases.values())) > 1:
        found = ", ".join(f"{model}: {ref}" for model, ref in bases.items())
        raise ModelError(f"the models belong to different bases ({found}); evaluate them apart, or give base=")
    bench = open_bench(find_tasks(taskpool), bases[models[0]], (config.split,), config, stage)
    names = short_names(models)
    compute_in_background(file for at in located.values() for file in open_checkpoint(at.folder, at.ref).files)
    candidates = [candidate(names[model], at, bench) for model, at in located.items()]
    at_name = {names[model]: at for model, at in located.items()}
    on_val = bench.on_val(candidates, stage)
    results = Results(bench.scoring.workers.first, [], [])
    for corruption in bench.corruptions:
        scores = bench.score(candidates, config.split, stage, corruption, on_val=on_val)
        exact = {} if corruption else bench.in_float32(candidates, config.split, stage)
        for score in scores:
            which = score.model, score.task
            of = {"corruption": corruption, "exact": exact.get(which), "val": on_val.get(which)}
            results.records.append(record_of(bench, score, config.split, **of, **origin(at_name[score.model])))
        results.scores.append((corruption, scores))
    return replace(results, records=with_references(results.records, bench.tasks))


def write_results(folder: Path, results: Results, tables: Sequence[Table], overwrite: bool = False) -> None:
    """A new folder with reports, records and predictions of all models that were evaluated. Raises OutputError."""
    with new_folder(folder, overwrite) as temporary:
        subjects = list(dict.fromkeys(record.model for record in results.records))
        write_report(temporary, tables, results.records, subjects)
        for corruption, scores in results.scores:
            save_predictions(temporary / "predictions", scores, corruption)


def base_of(at: Located, given: str | None) -> str:
    """The base of a located model: as its recipe says, else `given`, else a full CLIP itself, else the known one.

    Raises:
        ModelError: none is known, or the recipe and `given` name different ones.
    """
    recipe = read_recipe(at.folder) if at.folder.is_dir() else None
    members = recipe["pool"] if recipe else []
    own = next((m["path"] for m in members if m["name"] == PRETRAINED and m.get("path")), None)
    if own is not None and (hub_ref(own) or local_path(own).exists()):
        if given not in (None, own):
            raise ModelError(f"{at.ref}: was merged from the base {own}; base={given} is another")
        return own
    if given is not None:
        return given
    return at.ref if is_full_clip(at.folder) else known_base(read_geometry(at.folder), at.ref)


def candidate(name: str, at: Located, bench: Bench) -> Candidate:
    checkpoint, geometry = open_checkpoint(at.folder, at.ref), read_geometry(at.folder)

    def load() -> VisionEncoder:
        return VisionEncoder(build_vision_model(checkpoint, geometry), bench.base)

    size = sum(checkpoint.spec(n).numel for n in checkpoint)
    return Candidate(name, load, 4 * size, size, identity=lambda: identity_of_files(checkpoint, geometry, bench.base))


def origin(at: Located) -> Mapping[str, Any]:
    """Role, recipe or source, and uses, for the record of a located model."""
    recipe = read_recipe(at.folder) if at.folder.is_dir() else None
    files = {file.name: known_hash(file) for file in open_checkpoint(at.folder, at.ref).files}
    source = {"path": at.ref, "revision": at.revision, "files": files}
    if recipe:
        pool = [with_hashes(member) for member in recipe["pool"]]
        return {"role": "merged", "recipe": recipe | {"pool": pool}, "source": source, "uses": recipe["uses"]}
    return {"role": "other", "source": source}


def with_hashes(member: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recipe's member with the hashes that were not known when it was written and are now."""
    if not member.get("path") or hub_ref(member["path"]):
        return member
    at = local_path(member["path"])
    folder = at if at.is_dir() else at.parent
    files = {n: h or (known_hash(folder / n) if (folder / n).is_file() else None) for n, h in member["files"].items()}
    return {**member, "files": files}


def short_names(models: Sequence[str]) -> dict[str, str]:
    """Last parts of paths and ids where they differ, else the whole."""
    short = {model: Path(model.rstrip("/")).name for model in models}
    return short if len(set(short.values())) == len(short) else {model: model for model in models}
