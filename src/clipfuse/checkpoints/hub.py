"""A repository of the hub: files in the hub's own cache, compared with the hub's hashes, and its errors in words."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clipfuse.checkpoints.writer import write_text
from clipfuse.errors import LocateError, OutputError


@dataclass(frozen=True)
class HubRef:
    """A repository on the hub, at a branch, tag or commit (None is the default branch)."""

    repo: str
    revision: str | None
    kind: Literal["model", "dataset"] = "model"


@dataclass(frozen=True)
class RemoteFile:
    """One file of a hub repository: bytes (None if the hub does not say) and whether it is in the cache."""

    name: str
    size: int | None
    cached: bool
    digest: str | None = None
    """sha256 of a large file, git's hash of a small one."""


def remote_list(hub: HubRef, info: Any, names: Sequence[str]) -> list[RemoteFile]:
    """The files `names` of a repository, from what the hub says of it with `files_metadata`."""
    pinned = HubRef(hub.repo, info.sha, hub.kind)
    told = {file.rfilename: file for file in info.siblings or ()}
    return [
        RemoteFile(
            *(name, told[name].size, cached_file(pinned, name) is not None),
            told[name].lfs.sha256 if told[name].lfs else told[name].blob_id,
        )
        for name in names
    ]


def bring(hub: HubRef, commit: str, file: RemoteFile) -> Path:
    """One file in the hub's cache. The hub's client looks at sizes only: what it downloaded is hashed once."""
    from huggingface_hub import hf_hub_download

    for _ in range(2):
        with hub_errors(hub):
            path = Path(hf_hub_download(hub.repo, file.name, repo_type=hub.kind, revision=commit))
            if file.cached or is_whole(path, file.digest):
                return path
            blob = path.resolve()
            path.unlink()
            blob.unlink(missing_ok=True)
    raise LocateError(
        f"{hub.repo}: {file.name} arrived twice with other bytes than the hub's hash says; it is not kept"
    )


def is_whole(path: Path, digest: str | None) -> bool:
    """Whether a file has the hash that the hub tells of it; True if it tells none."""
    if digest is None:
        return True
    large = len(digest) == 64
    found = hashlib.sha256() if large else hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(8 << 20):
            found.update(chunk)
    return found.hexdigest() == digest


def remember(snapshot: Path, revision: str) -> None:
    """Note in the hub's cache which commit a branch or tag means: offline, that is the only way to its files.

    The hub's own client does so too, but not where it is asked for a commit.
    """
    note = snapshot.parents[1] / "refs" / revision
    if revision == snapshot.name or (note.is_file() and note.read_text() == snapshot.name):
        return
    with suppress(OSError, OutputError):  # a cache that may only be read is of use all the same
        note.parent.mkdir(parents=True, exist_ok=True)
        write_text(note, snapshot.name)


def cached_file(hub: HubRef, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub.repo, name, revision=hub.revision, repo_type=hub.kind)
    return Path(found) if isinstance(found, str) else None


class OutOfReachError(LocateError):
    """Offline, or the hub does not answer: the cache may still help."""


@contextmanager
def hub_errors(hub: HubRef) -> Iterator[None]:
    """Tell the hub client's many errors in one line each."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx

    at = f"@{hub.revision}" if hub.revision else ""
    try:
        yield
    except errors.GatedRepoError:
        raise LocateError(f"{hub.repo}: is gated; ask for access on its page and set HF_TOKEN") from None
    except errors.RevisionNotFoundError:
        raise LocateError(f"{hub.repo}{at}: the repository has no such revision") from None
    except errors.RepositoryNotFoundError:
        here = "no such folder here and " if hub.kind == "model" else ""
        text = f"{here}no such {hub.kind} on the hub (or it is private and HF_TOKEN is not set)"
        raise LocateError(f"{hub.repo}: {text}") from None
    except errors.HFValidationError:
        raise LocateError(f"{hub.repo}: is neither a path here nor a hub id (org/name or org/name@revision)") from None
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError):
        why = "offline (HF_HUB_OFFLINE is set)" if offline() else "the hub cannot be reached"
        raise OutOfReachError(f"{hub.repo}{at}: {why}") from None
    except errors.EntryNotFoundError as error:
        raise LocateError(f"{hub.repo}{at}: {str(error).splitlines()[0]}") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        raise OutOfReachError(f"{hub.repo}{at}: the hub answers with an error ({status})") from None
    except (httpx.HTTPError, ConnectionError, TimeoutError):
        raise OutOfReachError(f"{hub.repo}{at}: the hub cannot be reached") from None
    except OSError as error:  # of this machine's disk, or a file of another size than was announced
        what = error.strerror or (str(error).splitlines() or [type(error).__name__])[0]
        raise OutOfReachError(f"{hub.repo}{at}: {what}") from None


def offline() -> bool:
    from huggingface_hub import constants

    return constants.is_offline_mode()
