"""`fetch`: download what a pool and a suite need; sizes first, resumed where it was cut off."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from clipfuse.checkpoints.locate import CLIP, VISION, HubRef, RemoteFile, download, hub_errors, hub_ref, remote_files
from clipfuse.errors import LocateError, TaskError
from clipfuse.pool import PRETRAINED, HuggingFaceClipVisionPool
from clipfuse.tasks import Task

DATA = (".parquet", ".arrow", ".zip", ".tar", ".gz", ".jsonl", ".csv", ".png", ".jpg")
"""Endings of files that a data set consists of."""


@dataclass(frozen=True)
class Want:
    """One repository to bring here: bytes in all (None if the hub does not say) and bytes that are missing."""

    kind: str
    name: str
    repo: str
    commit: str
    files: tuple[RemoteFile, ...]
    get: Callable[[], Any]

    @property
    def size(self) -> int:
        return sum(file.size or 0 for file in self.files)

    @property
    def missing(self) -> int:
        return sum(file.size or 0 for file in self.files if not file.cached)


def wanted(pool: HuggingFaceClipVisionPool | None, tasks: Sequence[Task], base: str | None = None) -> list[Want]:
    """What is to be downloaded; local folders need nothing.

    Raises:
        LocateError: a path that is not there, an unknown repository, or no connection.
    """
    paths = {name: pool.get_model_config(name).path for name in pool.all_model_names} if pool else {}
    paths |= {"base": base} if base else {}
    found = []
    for name, path in paths.items():
        hub = hub_ref(path)
        if hub is not None:
            needs = CLIP if name in (PRETRAINED, "base") else VISION
            commit, files = remote_files(hub, needs)
            found.append(model_want(name, hub, commit, files))
    found += [task_want(task) for task in tasks if task.hub_dataset]
    return found


def model_want(name: str, hub: HubRef, commit: str, files: list[RemoteFile]) -> Want:
    return Want("model", name, hub.repo, commit, tuple(files), lambda: download(hub, commit, files))


def task_want(task: Task) -> Want:
    """A task's data set: sizes from the hub, download and preparation through `datasets`."""
    from huggingface_hub import HfApi

    with hub_errors(HubRef(str(task.hub_dataset), task.revision)):
        info: Any = HfApi().dataset_info(str(task.hub_dataset), revision=task.revision, files_metadata=True)
    files = [RemoteFile(f.rfilename, f.size, False) for f in info.siblings or () if f.rfilename.endswith(DATA)]

    def get() -> None:
        import datasets
        from datasets.exceptions import DatasetsError

        for split in dict.fromkeys(task.splits.values()):
            try:
                datasets.load_dataset(str(task.hub_dataset), task.hub_config, split=split, revision=task.revision)
            except (OSError, ValueError, RuntimeError, DatasetsError) as error:
                raise TaskError(f"{task.name}: {task.hub_dataset}: {str(error).splitlines()[0]}") from None

    return Want("data set", task.name, str(task.hub_dataset), info.sha, tuple(files), get)


def fetch(wants: Sequence[Want], told: Callable[[Want], None]) -> None:
    """Download in order, `told` after each; what came before an error stays. Raises LocateError, TaskError."""
    for want in wants:
        try:
            want.get()
        except LocateError as error:
            raise LocateError(f"{error} (run the same command again to go on)") from None
        told(want)
