"""`fetch`: download what a pool and a suite need; sizes first, resumed where it was cut off."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from clipfuse.checkpoints.hub import HubRef, RemoteFile
from clipfuse.checkpoints.locate import CLIP, MODELSCOPE, VISION, download, hub_ref, remote_files
from clipfuse.data.hub_data import builder_of, prepare, source_files, standing
from clipfuse.errors import LocateError
from clipfuse.pool import PRETRAINED, HuggingFaceClipVisionPool
from clipfuse.tasks import Task


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
    paths = {name: pool.get_model_config(name).ref for name in pool.all_model_names} if pool else {}
    paths |= {"base": base} if base else {}
    found = []
    for name, path in paths.items():
        hub = hub_ref(path.removeprefix(MODELSCOPE))
        if hub is not None:
            needs = CLIP if name in (PRETRAINED, "base") else VISION
            found.append(model_want(name, hub, needs, path.startswith(MODELSCOPE)))
    found += [task_want(task) for task in tasks if task.hub_dataset]
    return found


def model_want(name: str, hub: HubRef, needs: Sequence[str], on_modelscope: bool) -> Want:
    if on_modelscope:
        from clipfuse.checkpoints import modelscope

        at, files = modelscope.listed_files(hub, needs)
        return Want("model", name, hub.repo, at, tuple(files), lambda: modelscope.download(hub, at, files))
    commit, files = remote_files(hub, needs)
    return Want("model", name, hub.repo, commit, tuple(files), lambda: download(hub, commit, files))


def task_want(task: Task) -> Want:
    """A task's data set at the commit that its revision means now: all splits, prepared by `datasets`."""
    stands = standing(task)
    if stands.prepared:
        held = RemoteFile("prepared", stands.prepared.info().get("download_size"), cached=True)
        return Want("data set", task.name, stands.hub.repo, stands.prepared.commit, (held,), lambda: None)
    files = tuple(source_files(stands, builder_of(task, stands)))
    return Want("data set", task.name, stands.hub.repo, stands.info.sha, files, lambda: prepare(task, stands))


def fetch(wants: Sequence[Want], told: Callable[[Want], None]) -> None:
    """Download in order, `told` after each; what came before an error stays. Raises LocateError, TaskError."""
    for want in wants:
        try:
            want.get()
        except LocateError as error:
            raise LocateError(f"{error} (run the same command again to go on)") from None
        told(want)
