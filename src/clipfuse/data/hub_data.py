"""Data sets of the hub: resolved to a commit, downloaded, compared with the hub's hashes, prepared by `datasets`.

`datasets` keeps what it prepared under the commit's name, where `load_dataset` finds it too. What is there is opened
without asking the hub when the task names a commit, and without `datasets`, which takes seconds to import. Asked for
a commit that it cannot get, `load_dataset` falls back on the last commit that it has; here that is an error.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipfuse.checkpoints.hub import HubRef, OutOfReachError, RemoteFile, bring, hub_errors, offline, remote_list
from clipfuse.checkpoints.ledger import locked_revision, note_opened
from clipfuse.checkpoints.locate import COMMIT
from clipfuse.data.prepared import Prepared, find_prepared, recall, remember, split_rows
from clipfuse.data.table_files import is_table, open_table
from clipfuse.data.tables import Arrow, Table, make_table, table_errors
from clipfuse.errors import LocateError, TaskError
from clipfuse.tasks import Task

__all__ = ["Table", "is_table", "open_hub", "open_table", "prepare", "quiet_datasets", "standing"]

log = logging.getLogger(__name__)
CARD = ("README.md", ".huggingface.yaml", "dataset_infos.json")
"""Files that describe a data set; all may be absent."""


@dataclass(frozen=True)
class Standing:
    """How a task's data set stands: what is here of it, or else what the hub says of the commit to be had."""

    hub: HubRef
    prepared: Prepared | None
    info: Any = None


def open_hub(task: Task, split: str) -> Table:
    """A split of a task on the hub; downloaded and prepared if it is not here. Images stay encoded.

    Raises:
        TaskError: it cannot be had, or is not what the task says.
    """
    try:
        stands = standing(task)
        prepared = stands.prepared or prepare(task, stands)
    except OutOfReachError as error:
        raise TaskError(
            f"{task.name}: {error}; what is needed is brought here by: clipfuse fetch taskpool=NAME_OR_FILE"
        ) from None
    except LocateError as error:
        raise TaskError(f"{task.name}: {error}") from None
    note_opened("dataset", stands.hub.repo, prepared.commit)
    source, where = task.splits[split], f"{task.hub_dataset} {task.splits[split]}"
    with table_errors(task, where):
        rows = Arrow(split_rows(task, prepared, source))
    origin = {"hub_dataset": stands.hub.repo, "config": prepared.config, "revision": prepared.commit, "split": source}
    return make_table(task, where, rows, origin)


def standing(task: Task) -> Standing:
    """Whether a task's data set is here. The hub is asked what a revision means, unless it is a commit that is here.

    Offline, out of reach, or when the hub has it no more, what the revision meant when it was last seen counts.

    Raises:
        LocateError: it is not here, and the hub does not answer or has no such data set.
    """
    from huggingface_hub import HfApi

    repo = str(task.hub_dataset)
    hub = HubRef(repo, locked_revision("dataset", repo) or task.revision, "dataset")
    config = task.hub_config
    if hub.revision and COMMIT.fullmatch(hub.revision) and (found := find_prepared(hub, config, hub.revision)):
        return Standing(hub, found)
    try:
        with hub_errors(hub):
            info: Any = HfApi().dataset_info(hub.repo, revision=hub.revision, files_metadata=True)
    except LocateError as error:
        commit = recall(hub, config).get("commit")
        found = find_prepared(hub, config, commit, guess=True) if commit else None
        if found is None:
            if isinstance(error, OutOfReachError):
                raise OutOfReachError(f"{error}, and it was not prepared here before") from None
            raise
        if not offline():
            log.warning("%s: %s; what is here of it is used, commit %s", task.name, error, found.commit)
        return Standing(hub, found)
    if found := find_prepared(hub, config, info.sha):
        remember(hub, config, found)
    return Standing(hub, found, info)


def prepare(task: Task, stands: Standing) -> Prepared:
    """Download, check and prepare a data set at the commit that it stands at. Goes on where it was stopped.

    Raises:
        LocateError: the hub does not answer, or not with what its hashes say.
        TaskError: `datasets` cannot make a table of it.
    """
    hub, commit = stands.hub, stands.info.sha
    builder = builder_of(task, stands)
    for file in source_files(stands, builder):
        if not file.cached:
            bring(hub, commit, file)
    with data_errors(task, hub):
        builder.download_and_prepare()
    found = Prepared(Path(builder.cache_dir), commit, builder.config.name)
    remember(hub, task.hub_config, found)
    return found


def builder_of(task: Task, stands: Standing) -> Any:
    """The builder of `datasets`, which knows the files of a configuration. Nothing large is downloaded.

    What describes the data set is brought here first: `datasets` would go on without what it could not get.
    """
    hub, info = stands.hub, stands.info
    described = [file.rfilename for file in info.siblings or () if file.rfilename in CARD]
    for file in remote_list(hub, info, described):
        bring(hub, info.sha, file)
    with data_errors(task, hub):
        import datasets

        builder = datasets.load_dataset_builder(hub.repo, task.hub_config, revision=info.sha)
    if builder.hash != info.sha:
        raise OutOfReachError(f"{hub.repo}: the hub does not say what files it has at commit {info.sha}")
    return builder


def source_files(stands: Standing, builder: Any) -> list[RemoteFile]:
    """The files on the hub that a builder reads; none is missing once it has prepared them."""
    start = f"hf://datasets/{stands.hub.repo}@{stands.info.sha}/"
    there = {file.rfilename for file in stands.info.siblings or ()}
    urls = [str(url) for files in (builder.config.data_files or {}).values() for url in files]
    names = dict.fromkeys(url.removeprefix(start) for url in urls)
    files = remote_list(stands.hub, stands.info, [name for name in names if name in there])
    done = Path(builder.cache_dir, "dataset_info.json").is_file()
    return [replace(file, cached=True) for file in files] if done else files


@contextmanager
def data_errors(task: Task, hub: HubRef) -> Iterator[None]:
    """Tell what `datasets` raises in one line; anything may come of what strangers put into a repository."""
    with hub_errors(hub), quiet_datasets():
        from datasets.exceptions import DatasetsError
        from huggingface_hub.utils import httpx

        try:
            yield
        except Exception as error:
            if isinstance(error, (OSError, httpx.HTTPError)) and not isinstance(error, DatasetsError):
                raise
            cause = error.__cause__ or error
            first = (str(cause).splitlines() or [""])[0] or type(cause).__name__
            raise TaskError(f"{task.name}: {hub.repo}: datasets cannot prepare it ({first})") from None


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """No progress and no word of retries from `datasets` and the hub's client; what fails is told in one line."""
    import datasets
    from huggingface_hub.utils import logging as hub_logging

    before = datasets.logging.get_verbosity(), hub_logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    hub_logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(before[0])
        hub_logging.set_verbosity(before[1])
        if not before[2]:
            datasets.enable_progress_bars()
