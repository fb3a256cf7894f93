"""A prepared folder into a repository of the hub: one commit, on what was looked at before."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipfuse.checkpoints.hub import HubRef, hub_errors, is_whole, remote_list
from clipfuse.checkpoints.locate import CLIP
from clipfuse.checkpoints.writer import MARK
from clipfuse.errors import ConfigError, OutputError
from clipfuse.fusion.merged import RECIPE, STATE
from clipfuse.version import __version__

RECORDS, WEIGHTS, CARD = "records.jsonl", "model.safetensors", "README.md"
OURS = {RECORDS, WEIGHTS, CARD, RECIPE, STATE, *CLIP}
"""What `publish` may put into a repository; of these, others than the published ones go with `overwrite`."""


@dataclass(frozen=True)
class Published:
    """What has arrived on the hub: where, at which commit, and its files' sizes in bytes."""

    repo: str
    url: str
    commit: str
    files: Mapping[str, int]


def upload(
    prepared: Path, repo: str, private: bool = False, message: str | None = None, overwrite: bool = False
) -> Published:
    """Put a prepared folder into a repository, in one commit on what was looked at. Raises OutputError, LocateError."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    files = listing(prepared)
    api, hub = HfApi(library_name="clipfuse", library_version=__version__), HubRef(repo, None)
    with upload_errors(hub):
        url = api.create_repo(repo, private=private or None, exist_ok=True)
        info: Any = api.model_info(repo, files_metadata=True)
        there = [file.rfilename for file in info.siblings or () if file.rfilename != ".gitattributes"]
        other = [f.name for f in remote_list(hub, info, there) if not is_same(prepared, f.name, f.digest)]
        if other and not overwrite:
            raise OutputError(f"{repo}: holds another {other[0]!r} already; choose another name or pass --overwrite")
        if private and info.private is False:
            raise OutputError(f"{repo}: is there and is public; make it private on its page, or go without --private")
        add = [CommitOperationAdd(name, prepared / name) for name in files]
        stale = [CommitOperationDelete(name) for name in there if name in OURS and name not in files]
        text = message or f"A merge by clipfuse {__version__}"
        commit = api.create_commit(repo, [*add, *stale], commit_message=text, parent_commit=info.sha)
    return Published(repo, str(url), commit.oid, files)


def is_same(prepared: Path, name: str, digest: str | None) -> bool:
    return digest is not None and name in listing(prepared) and is_whole(prepared / name, digest)


def listing(prepared: Path) -> dict[str, int]:
    """What is uploaded of a prepared folder, and its size in bytes."""
    return {path.name: path.stat().st_size for path in sorted(prepared.iterdir()) if path.name != MARK}


def check_repo(repo: str) -> None:
    """Raises ConfigError unless it is `owner/name`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        if repo.count("/") == 1:
            return
    except HFValidationError:
        pass
    raise ConfigError(f"{repo!r}: is no repository of the hub; it has the form owner/name (letters, digits, - _ .)")


def check_token() -> None:
    """Raises OutputError without a token of the hub."""
    from huggingface_hub import get_token

    if get_token() is None:
        raise OutputError("publish: there is no token of the hub; log in by `hf auth login`, or set HF_TOKEN")


@contextmanager
def upload_errors(hub: HubRef) -> Iterator[None]:
    """Tell what the hub refuses in one line."""
    from huggingface_hub import errors

    with hub_errors(hub):
        try:
            yield
        except errors.HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else None
            if status in (401, 403):
                raise OutputError(f"{hub.repo}: the hub does not let this token write there ({status})") from None
            if status in (409, 412):
                raise OutputError(f"{hub.repo}: has changed meanwhile; run the same command again") from None
            raise
        except ValueError as error:
            if isinstance(error, errors.HFValidationError):
                raise
            raise OutputError(f"{hub.repo}: {' '.join(str(error).split())}") from None
