"""`publish`: a merged model on the hub, with a card that lets anyone check it."""

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipfuse.checkpoints.card import Publication, model_card
from clipfuse.checkpoints.hashes import compute_hash
from clipfuse.checkpoints.locate import is_remote, local_path
from clipfuse.checkpoints.names import PROJECTION
from clipfuse.checkpoints.run_file import PRETRAINED
from clipfuse.checkpoints.writer import check_output, new_folder, write_errors, write_text
from clipfuse.errors import CheckpointError, ConfigError, ModelError
from clipfuse.evaluate import Record
from clipfuse.evaluate.record import read_records, same, write_records
from clipfuse.fusion.loading import load_installed
from clipfuse.fusion.merged import RECIPE, STATE, Merged, load, write_description
from clipfuse.fusion.registry import TABLES, Kind
from clipfuse.models.build import is_full_clip
from clipfuse.models.clip_base import ClipBase, known_base, open_base
from clipfuse.models.full_clip import write_full_clip
from clipfuse.report.card_results import evaluate_words, hub_datasets, model_index, results_markdown
from clipfuse.run.provenance import licences, places, published_recipe, published_record, reference, with_hashes
from clipfuse.run.upload import CARD, RECORDS, WEIGHTS, Published, check_repo, check_token, upload


@dataclass(frozen=True)
class Subject:
    """What is published: a merged folder, and the records of it."""

    folder: Path
    merged: Merged
    records: list[Record]


def publish(
    folder: str | Path,
    repo: str,
    *,
    private: bool = False,
    message: str | None = None,
    clip: bool = False,
    records: str | Path | None = None,
    overwrite: bool = False,
) -> Published:
    """Put a merged model on the hub: weights, recipe, card, and the records of it, in one commit.

    Args:
        folder: What `clipfuse merge --out` wrote, or a run.
        repo: `owner/name`; made if it is not there.
        private: Make it a private repository.
        message: Of the commit.
        clip: Write the full CLIP, with the base's text tower, tokenizer and processor.
        records: What `evaluate --out` wrote of the merge; a run brings its own.
        overwrite: Replace what else the repository holds of what clipfuse publishes.

    Raises:
        ConfigError, CheckpointError, ModelError, LocateError: what may not be published, as `prepare`.
        OutputError: no token, no right to write there, or a repository with other content.
    """
    check_repo(repo)
    check_token()
    with tempfile.TemporaryDirectory(prefix="clipfuse-") as room:
        prepared = prepare(folder, repo, Path(room, "model"), clip=clip, records=records)
        return upload(prepared, repo, private, message, overwrite)


def prepare(
    folder: str | Path,
    repo: str,
    out: str | Path,
    *,
    clip: bool = False,
    records: str | Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the very folder that `publish` uploads, and give its path. Weights are linked where the disk allows it.

    Raises:
        ConfigError: a malformed `repo`, records of another merge.
        CheckpointError: nothing that clipfuse merged.
        ModelError: a kind that transformers cannot load, or no base for `clip`.
        LocateError, OutputError: a model of the pool that nobody could check.
    """
    check_repo(repo)
    subject = find_subject(Path(folder), Path(records) if records else None)
    check_output(Path(out), overwrite, [subject.folder / WEIGHTS])
    source, merged = subject.folder, subject.merged
    whole = clip or is_full_clip(source)
    if whole and merged.known_geometry.linearised:
        raise ModelError(f"{source}: is linearised, which a full CLIP cannot be; publish it without --clip")
    since = (source / RECIPE).stat().st_mtime
    pool = with_hashes(merged.recipe["pool"], subject.records, since)
    names = places({**merged.recipe, "pool": pool}, subject.records)
    recipe = published_recipe({**merged.recipe, "pool": pool}, names)
    found = [published_record(record, recipe, names) for record in subject.records]
    with new_folder(Path(out), overwrite) as temporary:
        write_description(temporary, recipe, merged.known_geometry, merged.files)
        if whole:
            write_full_clip(temporary, merged.tensors, base_of(subject), merged.known_geometry)
        else:
            link(source / WEIGHTS, temporary / WEIGHTS)
        if (source / STATE).is_file():
            link(source / STATE, temporary / STATE)
        if found:
            write_records(temporary / RECORDS, found)
        weights = {name: compute_hash(temporary / name) for name in (WEIGHTS, STATE) if (temporary / name).is_file()}
        about = publication(repo, recipe, found)
        about = replace(
            about,
            full=whole,
            projection=PROJECTION in merged.tensors and not is_full_clip(source),
            weights=weights,
            licences=licences(merged.recipe["pool"]),
        )
        write_text(temporary / CARD, model_card(recipe, about))
    return Path(out)


def find_subject(folder: Path, records: Path | None) -> Subject:
    """The merged model in a folder, or in a run, and its records. Raises CheckpointError, ModelError, ConfigError."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; publish takes what clipfuse merged, or a run")
    is_run = not (folder / RECIPE).is_file() and (folder / "merged").is_dir()
    if is_run and records is None and (folder / RECORDS).is_file():
        records = folder / RECORDS
    folder = folder / "merged" if is_run else folder
    several = sorted(path.parent.name for path in folder.glob(f"merged_*/{RECIPE}"))
    if several:
        raise ConfigError(f"{folder}: is a run with several models; publish one of {', '.join(several)}")
    if not (folder / RECIPE).is_file():
        raise CheckpointError(f"{folder}: holds no {RECIPE}; publish takes what clipfuse merged, or a run")
    merged = load(folder)
    if merged.recipe["kind"] != "weights":
        raise ModelError(f"{folder}: is of kind {merged.recipe['kind']!r}; only kind 'weights' loads with transformers")
    if not (folder / WEIGHTS).is_file():
        raise CheckpointError(f"{folder}: holds no {WEIGHTS}, which clipfuse writes")
    return Subject(folder, merged, records_of(folder, merged.recipe, records) if records else [])


def records_of(folder: Path, recipe: Mapping[str, Any], path: Path) -> list[Record]:
    """The records of a merge, of one evaluation. Raises ConfigError if there are none, or they are of other weights."""
    path = path / RECORDS if path.is_dir() else path
    merged = [record for record in read_records(path) if record.role == "merged" and record.recipe]
    mine = [record for record in merged if same(record.recipe, recipe)]
    if not mine:
        keys = sorted({key for r in merged for key in differing(r.recipe or {}, recipe)})
        what = f"other merges; other are: {', '.join(keys)}" if merged else "no merged model"
        raise ConfigError(f"{path}: not of {folder / RECIPE} but of {what}")
    mine = [record for record in mine if record.model == mine[0].model]
    digest = next((d for r in mine if r.source and (d := r.source["files"].get(WEIGHTS))), None)
    if digest is not None and digest != compute_hash(folder / WEIGHTS):
        raise ConfigError(f"{path}: is of other weights than {folder / WEIGHTS} (sha256 {digest[:12]}…)")
    return mine


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return [key for key in {**one, **other} if not same({"_": one.get(key)}, {"_": other.get(key)})]


def base_of(subject: Subject) -> ClipBase:
    """The base whose text side goes with the merge: its own if it has one; of a merge of towers alone, that of its
    records, or the known one. Raises ModelError if it is not known.
    """
    if is_full_clip(subject.folder):
        return ClipBase(str(subject.folder), subject.folder)
    member = next((m for m in subject.merged.recipe["pool"] if m["name"] == PRETRAINED), None)
    ref = reference(member) if member else None
    if ref and (is_remote(ref) or is_full_clip(local_path(ref))):
        return open_base(ref)
    if member and ref is None:
        raise ModelError(f"{subject.folder}: a full CLIP needs the base, and the recipe does not say where it is")
    known = [record.base for record in subject.records]
    return open_base(known[0] if known else known_base(subject.merged.geometry, str(subject.folder)))


def publication(repo: str, recipe: Mapping[str, Any], records: Sequence[Record]) -> Publication:
    """What the card says of rules and results besides the recipe."""
    from huggingface_hub import constants

    clean = [record for record in records if not record.corruption]
    url = f"{constants.ENDPOINT}/{repo}/blob/main/{RECORDS}"
    return Publication(
        repo=repo,
        papers=papers(recipe),
        results=results_markdown(records) if records else "",
        tasks=[record.task for record in clean],
        evaluate=evaluate_words(clean) if clean else Publication.evaluate,
        datasets=hub_datasets(clean),
        model_index=model_index(repo.rpartition("/")[2], clean, recipe["clipfuse"], url),
    )


def papers(recipe: Mapping[str, Any]) -> dict[str, str]:
    """Rule → title and link of its paper; of rules that are known here."""
    load_installed()
    steps: dict[Kind, Any] = {
        "method": [recipe["method"]],
        "edit": recipe.get("edits", ()),
        "finish": recipe.get("finishes", ()),
    }
    found = {}
    for kind, chosen in steps.items():
        for step in chosen:
            if rule := TABLES[kind].get(step["name"]):
                arxiv = (
                    f" [arXiv:{rule.paper.arxiv}](https://arxiv.org/abs/{rule.paper.arxiv})" if rule.paper.arxiv else ""
                )
                found[step["name"]] = f"{rule.paper.title} ({rule.paper.year}){arxiv}"
    return found


def link(source: Path, target: Path) -> None:
    """The same file in another folder, a copy where the disk refuses."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        with write_errors(target):
            shutil.copyfile(source, target)
