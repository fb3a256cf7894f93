"""From what a user writes (`./folder`, `org/name`, `org/name@revision`) to files on this machine.

The hub's own cache is used, and only the files that are needed are downloaded. huggingface_hub is imported when a
hub id is met.
"""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clipfuse.checkpoints.checkpoint import WEIGHTS
from clipfuse.checkpoints.writer import write_text
from clipfuse.errors import LocateError, OutputError

HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?)(@(?P<revision>[\w./-]+))?")
PACKAGE = "pkg://"
COMMIT = re.compile(r"[0-9a-f]{40}")

VISION = ("config.json", "clipfuse.json")
"""What a vision encoder has besides its weights; the recipe may be absent."""
CLIP = (
    *("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
)
"""What a full CLIP with its processor and tokenizer has besides its weights; all but the first may be absent."""


@dataclass(frozen=True)
class Located:
    """A model on this machine: `folder` (or one weights file) and, from the hub, the commit it is at."""

    ref: str
    folder: Path
    revision: str | None = None


@dataclass(frozen=True)
class RemoteFile:
    """One file of a hub repository: bytes (None if the hub does not say) and whether it is in the cache."""

    name: str
    size: int | None
    cached: bool


@dataclass(frozen=True)
class HubRef:
    """A repository on the hub, at a branch, tag or commit (None is the default branch)."""

    repo: str
    revision: str | None


def hub_ref(ref: str) -> HubRef | None:
    """The hub repository that `ref` means, or None if it is a path of this machine."""
    if ref.startswith((".", "/", "~", PACKAGE)) or os.path.lexists(ref):
        return None
    match = HUB_ID.fullmatch(ref)
    return HubRef(match["repo"], match["revision"]) if match else None


def local_path(ref: str) -> Path:
    """The path that is meant; `pkg://clipfuse/tiny/weights/base` is data inside an installed package."""
    if not ref.startswith(PACKAGE):
        try:
            return Path(ref).expanduser()
        except RuntimeError:
            raise LocateError(f"{ref}: no such user") from None
    name, _, inside = ref.removeprefix(PACKAGE).partition("/")
    spec = find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise LocateError(f"{ref}: no package {name!r} is installed")
    return Path(spec.submodule_search_locations[0], inside)


def locate(ref: str, needs: Sequence[str] = VISION) -> Located:
    """Find a model's config, weights and what else it `needs`, downloading what the hub's cache lacks.

    Raises:
        LocateError: neither a path here nor a model on the hub; or not in the cache with the hub out of reach.
    """
    hub = hub_ref(ref)
    if hub is None:
        path = local_path(ref)
        if not ref or not path.exists():
            raise LocateError(
                f"{ref or 'path'}: no such file or folder; a hub id has the form org/name or org/name@revision"
            )
        return Located(ref, path)
    if hub.revision and COMMIT.fullmatch(hub.revision) and (cached := in_cache(hub, needs)):
        return Located(ref, cached, hub.revision)
    try:
        commit, files = remote_files(hub, needs)
    except OutOfReachError as error:
        if cached := in_cache(hub, needs):
            return Located(ref, cached, cached.name)
        wanted = ", ".join([needs[0], WEIGHTS[0]])
        raise OutOfReachError(f"{error} and {wanted} are not in the cache") from None
    return Located(ref, download(hub, commit, files), commit)


def remote_files(hub: HubRef, needs: Sequence[str] = VISION) -> tuple[str, list[RemoteFile]]:
    """The commit that a revision means now, and those of its files that are needed, weights last.

    Raises:
        OutOfReachError: offline, or the hub does not answer.
        LocateError: no such repository, revision or access, or no weights in it.
    """
    from huggingface_hub import HfApi

    with hub_errors(hub):
        info: Any = HfApi().model_info(hub.repo, revision=hub.revision, files_metadata=True)
    sizes = {file.rfilename: file.size for file in info.siblings or ()}
    weights = next((name for name in WEIGHTS if name in sizes), None)
    if weights is None or needs[0] not in sizes:
        missing = needs[0] if needs[0] not in sizes else " or ".join(WEIGHTS)
        raise LocateError(f"{hub.repo}: the hub has no {missing} in this repository; it is not a transformers model")
    names = [name for name in needs if name in sizes] + [weights]
    if weights.endswith(".index.json"):
        stem, ending = weights.removesuffix(".index.json").rsplit(".", 1)
        names += sorted(name for name in sizes if re.fullmatch(rf"{re.escape(stem)}-\d+-of-\d+\.{ending}", name))
    pinned = HubRef(hub.repo, info.sha)
    return info.sha, [RemoteFile(name, sizes[name], cached_file(pinned, name) is not None) for name in names]


def download(hub: HubRef, commit: str, files: Sequence[RemoteFile]) -> Path:
    """Bring `files` into the hub's cache (resuming what was cut off); the snapshot's folder."""
    from huggingface_hub import hf_hub_download

    with hub_errors(hub):
        paths = [Path(hf_hub_download(hub.repo, file.name, revision=commit)) for file in files]
    remember(paths[0].parent, hub.revision or "main")
    return paths[0].parent


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


def in_cache(hub: HubRef, needs: Sequence[str]) -> Path | None:
    """The snapshot's folder if config, weights and, of a full CLIP, processor and tokenizer are in the hub's cache."""
    config = cached_file(hub, needs[0])
    if config is None:
        return None
    alternatives = [("preprocessor_config.json",), ("tokenizer.json", "vocab.json")]
    for names in alternatives if "preprocessor_config.json" in needs else []:
        if not any((config.parent / name).is_file() for name in names):
            return None
    index = next((name for name in WEIGHTS if (config.parent / name).is_file()), None)
    if index is None:
        return None
    if index.endswith(".index.json"):
        from clipfuse.checkpoints.checkpoint import shards
        from clipfuse.errors import CheckpointError

        try:
            shards(config.parent / index)
        except CheckpointError:
            return None
    return config.parent


def cached_file(hub: HubRef, name: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub.repo, name, revision=hub.revision)
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
        text = "no such folder here and no such model on the hub (or it is private and HF_TOKEN is not set)"
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


def offline() -> bool:
    from huggingface_hub import constants

    return constants.is_offline_mode()
