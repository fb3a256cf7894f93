"""What a published recipe must say and what it must not: every hash, the licences, and no path of this machine."""

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from clipfuse.checkpoints.hashes import compute_hash
from clipfuse.checkpoints.hub import HubRef, cached_file, hub_errors
from clipfuse.checkpoints.locate import HUB_ID, MODELSCOPE, PACKAGE, local_path, locate
from clipfuse.checkpoints.run_file import COEFFICIENTS, is_on_hub
from clipfuse.errors import LocateError, OutputError
from clipfuse.evaluate import Record

Pool = Sequence[Mapping[str, Any]]


def hub_of(member: Mapping[str, Any]) -> HubRef | None:
    """The repository and commit of a model of a recipe; None if it was local or in memory."""
    match = HUB_ID.fullmatch(member["path"]) if is_on_hub(member.get("path")) else None
    return HubRef(match["repo"], member.get("revision") or match["revision"]) if match else None


def reference(member: Mapping[str, Any]) -> str | None:
    """What leads to the very model that was merged; None where nothing does."""
    hub = hub_of(member)
    if (path := member.get("path") or "").startswith(MODELSCOPE) and member.get("revision"):
        return f"{path.partition('@')[0]}@{member['revision']}"
    return (f"{hub.repo}@{hub.revision}" if hub.revision else hub.repo) if hub else member.get("path")


def with_hashes(pool: Pool, records: Iterable[Record], since: float) -> list[dict[str, Any]]:
    """A recipe's pool with every hash: its own, else the records', else computed now.

    Args:
        pool: Of the recipe.
        records: Of its results, which may know more.
        since: When the merge was written; a file that is newer is not what was merged.

    Raises:
        OutputError: a model was in memory.
        LocateError: a file is gone or has changed.
    """
    told: dict[tuple[str, str], str] = {}
    for record in records:
        for member in (record.recipe or {}).get("pool", ()):
            told |= {(member["name"], file): digest for file, digest in member.get("files", {}).items() if digest}
    found = []
    for member in pool:
        files = member.get("files") or {}
        if not files:
            raise OutputError(
                f"{member['name']}: was in memory when it was merged, and nobody could check it; merge from folders or "
                "from the hub"
            )
        known = {file: digest or told.get((member["name"], file)) for file, digest in files.items()}
        missing = [file for file, digest in known.items() if digest is None]
        found.append({**member, "files": known | computed(member, missing, since)})
    return found


def computed(member: Mapping[str, Any], files: Sequence[str], since: float) -> dict[str, str]:
    """sha256 of a model's files where it lies. Raises LocateError."""
    if not files:
        return {}
    name, ref = member["name"], reference(member)
    hub = hub_of(member)
    here = hub is None and not (ref or "").startswith(MODELSCOPE)
    at = local_path(ref or "") if here else locate(ref or "").folder
    found = {}
    for file in files:
        path = at / file if at.is_dir() else at.with_name(file)
        if not path.is_file():
            raise LocateError(f"{path}: is gone; the card needs the sha256 of {name}, which was not known yet")
        if here and path.stat().st_mtime > since:
            raise LocateError(
                f"{path}: has changed since it was merged, and the sha256 of {name} was not known yet; merge again"
            )
        found[file] = compute_hash(path)
    return found


def licences(pool: Pool) -> dict[str, str | None]:
    """Model → its licence, as its own card says; None where that is not known or out of reach."""
    with ThreadPoolExecutor(8) as threads:
        return dict(zip([m["name"] for m in pool], threads.map(licence, pool), strict=True))


def licence(member: Mapping[str, Any]) -> str | None:
    hub = hub_of(member)
    if hub is None:
        path = local_path(member["path"]) if member.get("path") else None
        return licence_of(front_matter(path / "README.md")) if path else None
    from huggingface_hub import HfApi

    with suppress(LocateError), hub_errors(hub):
        card = HfApi().model_info(hub.repo, revision=hub.revision).card_data
        return licence_of(card.to_dict() if card else {})
    readme = cached_file(hub, "README.md")
    return licence_of(front_matter(readme)) if readme else None


def front_matter(readme: Path) -> Mapping[str, Any]:
    """The YAML before a card's text; empty where there is none."""
    with suppress(OSError, ValueError, yaml.YAMLError):
        _, head, _ = f"\n{readme.read_text(encoding='utf-8')}".split("\n---\n", 2)
        tree = yaml.safe_load(head)
        return tree if isinstance(tree, Mapping) else {}
    return {}


def licence_of(card: Mapping[str, Any]) -> str | None:
    """The name of a licence; of one that the hub does not list the name that the authors gave it."""
    found = card.get("license")
    if found == "other":
        found = card.get("license_name") or found
    names = [name for name in (found if isinstance(found, list) else [found]) if isinstance(name, str)]
    return ", ".join(names) or None


def places(recipe: Mapping[str, Any], records: Iterable[Record]) -> dict[str, str]:
    """Every place on this machine that recipe and records name → its last part."""
    own = [m["path"] for m in recipe["pool"] if m.get("path") and not is_on_hub(m["path"])]
    found = [text for text in [*own, *strings(recipe)] if text.startswith(("/", "~"))]
    for record in records:
        folder, path = record.data.get("folder"), (record.source or {}).get("path")
        found += [str(text) for text in (folder, path) if text]
        if not is_on_hub(record.base) or any(text.endswith(f"/{record.base}") for text in own):
            found.append(record.base)
    return {text: last_part(text) for text in found if not text.startswith(PACKAGE)}


def strings(tree: Any) -> list[str]:
    """All texts in a tree, keys left out."""
    if isinstance(tree, str):
        return [tree]
    parts = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, (list, tuple)) else ()
    return [text for part in parts for text in strings(part)]


def last_part(path: str) -> str:
    return Path(path.rstrip("/")).name or "folder"


def without_places(tree: Any, names: Mapping[str, str]) -> Any:
    """A tree in which no text is or contains one of the places, each by its last part instead."""
    if isinstance(tree, Mapping):
        return {key: without_places(value, names) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [without_places(value, names) for value in tree]
    if not isinstance(tree, str) or tree in names:
        return names.get(tree, tree) if isinstance(tree, str) else tree
    for path in sorted((path for path in names if path.startswith("/")), key=len, reverse=True):
        tree = re.sub(rf"(?<![\w./-]){re.escape(path)}(?![\w-])", lambda _, at=path: names[at], tree)
    return tree


def published_recipe(recipe: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A recipe as others get it: a local folder has no path, but `local`, its last part, and the hashes; coefficients
    that were given are those beside the weights.
    """
    pool = [
        {**member, "path": None, "local": names[member["path"]]} if member.get("path") in names else member
        for member in recipe["pool"]
    ]
    method = dict(recipe["method"])
    if COEFFICIENTS in recipe.get("files", ()) and method.get("weights"):
        method["weights"] = COEFFICIENTS
    return without_places({**recipe, "pool": pool, "method": method}, names)


def published_record(record: Record, recipe: Mapping[str, Any], names: Mapping[str, str]) -> Record:
    """A record with the published recipe, without places and without the name of this machine."""
    host = {"environment": record.environment.model_copy(update={"host": ""})} if record.environment else {}
    tree = without_places(record.model_copy(update=host).model_dump(mode="json"), names)
    return Record.model_validate({**tree, "recipe": recipe}, strict=False)
