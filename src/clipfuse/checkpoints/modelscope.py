"""Models from ModelScope: its own cache, what it lists of files, and its errors in words.

The client is modelscope_hub, which the package modelscope is built on: modelscope's own listing leaves the hashes out,
and importing it takes a second and torch.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from clipfuse.checkpoints.checkpoint import WEIGHTS
from clipfuse.checkpoints.hashes import compute_hash
from clipfuse.checkpoints.hub import HubRef, OutOfReachError, RemoteFile, offline, remember
from clipfuse.checkpoints.locate import COMMIT, Located, is_complete, model_files
from clipfuse.errors import LocateError

BRANCH = "master"
"""The default branch."""


def find_on_modelscope(ref: str, repo: str, revision: str | None, needs: Sequence[str]) -> Located:
    """Find a model's config, weights and what else it `needs`, downloading what ModelScope's cache lacks.

    Args:
        ref: What the user wrote; it stands in the result.
        repo: `org/name`.
        revision: A branch, tag or commit; None is `master`.
        needs: As for `locate`.

    Raises:
        OutOfReachError: not in the cache, with ModelScope out of reach.
        LocateError: no such repository, revision or access, no weights in it, or other bytes than it lists.
    """
    hub = HubRef(repo, revision)
    if revision and COMMIT.fullmatch(revision) and (cached := in_cache(hub, needs)):
        return Located(ref, *cached)
    try:
        at, files = listed_files(hub, needs)
    except OutOfReachError as error:
        if cached := in_cache(hub, needs):
            return Located(ref, *cached)
        raise OutOfReachError(f"{error} and {needs[0]}, {WEIGHTS[0]} are not in the cache") from None
    return Located(ref, download(hub, at, files), at)


def listed_files(hub: HubRef, needs: Sequence[str]) -> tuple[str, list[RemoteFile]]:
    """The commit that a revision means now, and those of its files that are needed, weights last.

    Where ModelScope confirms no commit, the revision's own name stands for it.

    Raises:
        OutOfReachError: offline, or ModelScope does not answer.
        LocateError: no such repository, revision or access, or no weights in it.
    """
    revision = hub.revision or BRANCH
    api = client(hub)
    there = listing(api, hub, revision)
    names = model_files(there, needs)
    if names is None:
        missing = needs[0] if needs[0] not in there else " or ".join(WEIGHTS)
        raise LocateError(f"{hub.repo}: ModelScope has no {missing} in this repository; it is not a transformers model")
    at = commit_of(api, hub, there, names) or revision
    found = [RemoteFile(name, there[name].get("Size"), False, there[name].get("Sha256") or None) for name in names]
    return at, [RemoteFile(f.name, f.size, held(hub, at, f) is not None, f.digest) for f in found]


def listing(api: Any, hub: HubRef, revision: str) -> dict[str, Mapping[str, Any]]:
    """What ModelScope says of each file: Path, Size, Sha256, CommittedDate, and Revision: the last commit to change it.

    It answers for an unknown revision with an error, or with no files at all.
    """
    with modelscope_errors(shown(hub)):
        entries = api.legacy.list_repo_files(hub.repo, "model", revision)
    there = {entry["Path"]: entry for entry in entries if entry.get("Type") != "tree"}
    if not there:
        raise LocateError(f"{shown(hub)}: ModelScope lists no files; the repository is empty or has no such revision")
    return there


def commit_of(api: Any, hub: HubRef, there: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str | None:
    """The commit that a listing is at, which ModelScope does not say outright.

    It is the last one to change a file, if the listing at that commit says the same of `names`. One that was confirmed
    before is not asked for again.
    """
    if hub.revision and COMMIT.fullmatch(hub.revision):
        return hub.revision
    newest = max(there.values(), key=lambda entry: entry.get("CommittedDate") or 0)
    commit = str(newest.get("Revision"))
    if commit == noted(hub):
        return commit
    if not COMMIT.fullmatch(commit):
        return None
    try:
        then = listing(api, hub, commit)
    except OutOfReachError:
        raise
    except LocateError:
        return None
    same = all(name in then and then[name].get("Sha256") == there[name].get("Sha256") for name in names)
    return commit if same else None


def download(hub: HubRef, at: str, files: Sequence[RemoteFile]) -> Path:
    """Bring `files` at a commit or other revision into ModelScope's cache, resuming what was cut off; their folder.

    Raises:
        OutOfReachError: ModelScope does not answer.
        LocateError: a file is not what its listed hash says, three times; it is not kept.
    """
    api = client(hub)
    for file in files:
        bring(api, hub, at, file)
    if COMMIT.fullmatch(at):
        remember(snapshots(hub) / at, hub.revision or BRANCH)
    return snapshots(hub) / at


def bring(api: Any, hub: HubRef, at: str, file: RemoteFile) -> None:
    """One file in its snapshot: where another snapshot has the same, that one; its hash is known afterwards."""
    path, target = held(hub, at, file), snapshots(hub) / at / file.name
    if path and path != target:
        with suppress(OSError):  # no hard links in this place: it is downloaded again
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, target)
    if path and target.exists():
        return
    with modelscope_errors(hub.repo, file.name):
        api.download_file(
            *(hub.repo, "model", file.name),
            revision=at,
            local_dir=target.parent,
            expected_sha256=file.digest,
            file_size=file.size,
        )
        compute_hash(target)


def held(hub: HubRef, at: str, file: RemoteFile) -> Path | None:
    """Where ModelScope's cache has this very file: in the snapshot that is meant, else in another one of the model."""
    own = snapshots(hub) / at / file.name
    others = sorted(snapshots(hub).glob(f"*/{file.name}")) if file.digest and not own.exists() else ()
    return next((path for path in (own, *others) if is_it(path, file)), None)


def is_it(path: Path, file: RemoteFile) -> bool:
    """Whether a file has the hash that is listed, or the size where none is."""
    if not path.is_file():
        return False
    return compute_hash(path) == file.digest if file.digest else path.stat().st_size == file.size


def in_cache(hub: HubRef, needs: Sequence[str]) -> tuple[Path, str] | None:
    """Folder and revision of a snapshot in ModelScope's cache that has all that is needed."""
    for at in filter(None, (noted(hub), hub.revision or BRANCH)):
        if is_complete(snapshots(hub) / at, needs):
            return snapshots(hub) / at, at
    return None


def noted(hub: HubRef) -> str | None:
    """The commit that a branch or tag meant when it was last downloaded."""
    note = snapshots(hub).parent / "refs" / (hub.revision or BRANCH)
    return note.read_text() if note.is_file() else None


def snapshots(hub: HubRef) -> Path:
    """Where ModelScope's cache has a model: a folder a revision."""
    cache: Path = package(hub).get_default_config().cache_dir
    return cache / "models" / hub.repo.replace("/", "--") / "snapshots"


def shown(hub: HubRef) -> str:
    return f"{hub.repo}@{hub.revision}" if hub.revision else hub.repo


def client(hub: HubRef) -> Any:
    """ModelScope's client; it reads MODELSCOPE_ENDPOINT, MODELSCOPE_CACHE and MODELSCOPE_API_TOKEN.

    Raises:
        OutOfReachError: offline.
    """
    if offline():
        raise OutOfReachError(f"{shown(hub)}: offline (HF_HUB_OFFLINE is set)")
    return package(hub).HubApi()


def package(hub: HubRef) -> Any:
    """The client's package, quiet unless MODELSCOPE_LOG_LEVEL says otherwise. Raises LocateError if it is missing."""
    try:
        import modelscope_hub
    except ImportError:
        what = "models from ModelScope need one more package: pip install 'clipfuse[modelscope]'"
        raise LocateError(f"{shown(hub)}: {what}") from None
    if "MODELSCOPE_LOG_LEVEL" not in os.environ:  # what it warns of is got over, or ends in an error here
        logging.getLogger("modelscope_hub").setLevel(logging.ERROR)
    return modelscope_hub


@contextmanager
def modelscope_errors(at: str, file: str = "such model or revision") -> Iterator[None]:
    """Tell the client's many errors in one line each."""
    from modelscope_hub import errors
    from requests import RequestException

    try:
        yield
    except errors.NotExistError:
        why = "or it is private and MODELSCOPE_API_TOKEN is not set"
        raise LocateError(f"{at}: ModelScope has no {file} ({why})") from None
    except (errors.AuthenticationError, errors.PermissionDeniedError):
        raise LocateError(f"{at}: ModelScope gives no access; ask for it there and set MODELSCOPE_API_TOKEN") from None
    except errors.FileIntegrityError:
        what = f"{file} arrived with other bytes than ModelScope's hash says, again and again; it is not kept"
        raise LocateError(f"{at}: {what}") from None
    except (errors.NetworkError, RequestException):
        raise OutOfReachError(f"{at}: ModelScope cannot be reached") from None
    except errors.APIError as error:
        raise OutOfReachError(f"{at}: ModelScope answers with an error ({error.status_code})") from None
    except (errors.HubError, OSError) as error:  # of this machine's disk
        what = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
        raise OutOfReachError(f"{at}: {what}") from None
