"""From what a user writes (`./folder`, `org/name@revision`, `modelscope://org/name`) to files on this machine.

The hub's own cache is used, and only the files that are needed are downloaded. huggingface_hub is imported when a
hub id is met.
"""

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clipfuse.checkpoints.checkpoint import WEIGHTS, shards, weights_file
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
from clipfuse.checkpoints.ledger import locked_revision, note_opened
from clipfuse.errors import CheckpointError, LocateError

HUB_ID = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?)(@(?P<revision>(?!\S*\.\.)[\w./-]+))?")
ODD = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]|.{1000}")
"""What neither a path nor a hub id has in it: a line of a message would not be one."""
PACKAGE, MODELSCOPE = "pkg://", "modelscope://"
COMMIT = re.compile(r"[0-9a-f]{40}")

VISION = ("config.json", "clipfuse.json")
"""What a vision encoder has besides its weights; the recipe may be absent."""
CLIP = (
    *("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
)
"""What a full CLIP with its processor and tokenizer has besides its weights; all but the first may be absent."""

ADAPTER, OPENCLIP = "adapter_config.json", "open_clip_config.json"
"""What describes a LoRA adapter and a model of OpenCLIP."""
FACTORS = ("adapter_model.safetensors", "adapter_model.bin", "linearized_adapter_model.safetensors")
"""Where an adapter keeps its factors."""


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


def is_remote(ref: str) -> bool:
    """Whether a reference leads to a repository of a hub."""
    return ref.startswith(MODELSCOPE) or hub_ref(ref) is not None


def local_path(ref: str) -> Path:
    """The path that is meant; `pkg://clipfuse/tiny/weights/base` is data inside an installed package."""
    if not ref.startswith(PACKAGE):
        try:
            return Path(ref).expanduser()
        except RuntimeError:
            raise LocateError(f"{ref}: no such user") from None
    name, _, inside = ref.removeprefix(PACKAGE).partition("/")
    spec = find_spec(name) if name.isidentifier() and name != "__main__" else None
    if spec is None or not spec.submodule_search_locations:
        raise LocateError(f"{ref}: no package {name!r} is installed")
    return Path(spec.submodule_search_locations[0], inside)


def locate(ref: str, needs: Sequence[str] = VISION) -> Located:
    """Find a model's config, weights and what else it `needs`, downloading what the hub's cache lacks.

    Raises:
        LocateError: neither a path here nor a model on the hub; not in the cache with the hub out of reach; or other
            than a lock says, where one is kept.
    """
    found = find(ref, needs, locked_revision("model", ref))
    note_opened("model", ref, found.revision, opened_files(found, needs))
    return found


def opened_files(at: Located, needs: Sequence[str]) -> list[Path]:
    """The files of a located model that are read."""
    folder = at.folder.parent if at.folder.is_file() else at.folder
    described = [folder / name for name in dict.fromkeys((*needs, ADAPTER, OPENCLIP)) if (folder / name).is_file()]
    if (folder / ADAPTER).is_file() and at.folder.is_dir():
        return described + [folder / name for name in FACTORS if (folder / name).is_file()]
    try:
        weights = weights_file(at.folder)
        more = list(shards(weights)) if weights.name.endswith(".index.json") else []
    except CheckpointError:  # told when it is opened
        return described
    return [*described, weights, *more]


def model_files(names: Collection[str], needs: Sequence[str]) -> list[str] | None:
    """Those of a folder's or repository's files that make a model, weights last; None if it holds none.

    With weights in shards all that may be shards are named.
    """
    if ADAPTER in names:
        factors = [name for name in FACTORS if name in names]
        return [ADAPTER, *factors] if factors else None
    weights = next((name for name in WEIGHTS if name in names), None)
    described = OPENCLIP if weights and weights.startswith("open_clip") else needs[0]
    if weights is None or described not in names:
        return None
    found = [described, *(name for name in needs if name in names and name != described), weights]
    if weights.endswith(".index.json"):
        stem, ending = weights.removesuffix(".index.json").rsplit(".", 1)
        found += sorted(name for name in names if re.fullmatch(rf"{re.escape(stem)}-\d+-of-\d+\.{ending}", name))
    return found


def find(ref: str, needs: Sequence[str], locked: str | None = None) -> Located:
    """`locate`, at the commit `locked` if one is given."""
    if ODD.search(ref):
        raise LocateError(f"{ref[:80]!r}: is neither a path nor a hub id")
    if ref.startswith(MODELSCOPE):
        from clipfuse.checkpoints.modelscope import find_on_modelscope

        hub = hub_ref(ref.removeprefix(MODELSCOPE))
        if hub is None:
            raise LocateError(f"{ref}: takes the form {MODELSCOPE}org/name or {MODELSCOPE}org/name@revision")
        return find_on_modelscope(ref, hub.repo, locked or hub.revision, needs)
    hub = hub_ref(ref)
    if hub is None:
        path = local_path(ref)
        if not ref or not path.exists():
            raise LocateError(
                f"{ref or 'path'}: no such file or folder; a hub id has the form org/name or org/name@revision"
            )
        return Located(ref, path)
    hub = HubRef(hub.repo, locked) if locked else hub
    if hub.revision and COMMIT.fullmatch(hub.revision) and (cached := in_cache(hub, needs)):
        return Located(ref, cached, hub.revision)
    try:
        commit, files = remote_files(hub, needs)
    except OutOfReachError as error:
        if cached := in_cache(hub, needs):
            return Located(ref, cached, cached.name)
        if "/" not in hub.repo:
            raise LocateError(f"{ref}: no such file or folder ({error})") from None
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
    there = [file.rfilename for file in info.siblings or ()]
    names = model_files(there, needs)
    if names is None:
        missing = needs[0] if needs[0] not in there else " or ".join(WEIGHTS)
        raise LocateError(f"{hub.repo}: the hub has no {missing} in this repository; it is not a transformers model")
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
    described = (cached_file(hub, name) for name in (needs[0], ADAPTER, OPENCLIP))
    config = next((path for path in described if path), None)
    return config.parent if config and is_complete(config.parent, needs) else None


def is_complete(folder: Path, needs: Sequence[str]) -> bool:
    """Whether a folder has config, weights and, of a full CLIP, processor and tokenizer."""
    here = {path.name for path in folder.iterdir() if path.is_file()} if folder.is_dir() else set()
    found = model_files(here, needs)
    if found is None:
        return False
    alternatives = [("preprocessor_config.json",), ("tokenizer.json", "vocab.json")]
    if "preprocessor_config.json" in needs and not all(here.intersection(names) for names in alternatives):
        return False
    index = next((name for name in found if name.endswith(".index.json")), None)
    try:
        return not index or bool(shards(folder / index))
    except CheckpointError:
        return False
