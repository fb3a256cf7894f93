"""From what a user writes (`./folder`, `org/name`, `org/name@revision`) to files on this machine.

The hub's own cache is used, and only the files that are needed are downloaded. huggingface_hub is imported when a
hub id is met.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clipfuse.checkpoints.checkpoint import WEIGHTS
from clipfuse.checkpoints.hub import (
    HubRef,
    OutOfReachError,
    RemoteFile,
    bring,
    cached_file,
    hub_errors,
    remember,
    remote_list,
)
from clipfuse.errors import LocateError

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
    return info.sha, remote_list(hub, info, names)


def download(hub: HubRef, commit: str, files: Sequence[RemoteFile]) -> Path:
    """Bring `files` into the hub's cache (resuming what was cut off); the snapshot's folder.

    Raises:
        OutOfReachError: the hub does not answer, or not as it should.
        LocateError: a file is not what the hub's hash of it says, twice; it is not kept.
    """
    paths = [bring(hub, commit, file) for file in files]
    remember(paths[0].parent, hub.revision or "main")
    return paths[0].parent


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
