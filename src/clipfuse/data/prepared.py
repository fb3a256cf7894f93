"""What `datasets` has prepared of the hub: where it is, and which commit a branch meant when it was last seen."""

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from clipfuse.cache import cache_folder
from clipfuse.checkpoints.hub import HubRef
from clipfuse.checkpoints.writer import write_text
from clipfuse.data.table_files import map_arrow
from clipfuse.errors import OutputError, TaskError, unknown
from clipfuse.tasks import Task

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Prepared:
    """What `datasets` has prepared: a folder of arrow files, all splits of one configuration."""

    folder: Path
    commit: str
    config: str

    def info(self) -> dict[str, Any]:
        return json.loads((self.folder / "dataset_info.json").read_text(encoding="utf-8"))


def split_rows(task: Task, prepared: Prepared, split: str) -> "pa.Table":
    """The rows of a prepared split, or of a part as in `train[90%:]`, mapped from its files."""
    import pyarrow as pa

    info = prepared.info()
    splits = info["splits"]
    if split in splits:
        return map_arrow(arrow_files(prepared.folder, info["dataset_name"], splits[split]))
    if not any(sign in split for sign in "[+"):
        raise TaskError(f"{task.name}: {task.hub_dataset}: " + unknown("split", split, splits))
    from datasets import ReadInstruction

    try:
        counts = {name: told["num_examples"] for name, told in splits.items()}
        parts = ReadInstruction.from_spec(split).to_absolute(counts)
    except (ValueError, AssertionError) as error:
        raise TaskError(f"{task.name}: {task.hub_dataset}: {split!r}: {str(error).splitlines()[0]}") from None
    tables = [(part, split_rows(task, prepared, part.splitname)) for part in parts]
    return pa.concat_tables([table.slice(part.from_, part.to - part.from_) for part, table in tables])


def arrow_files(folder: Path, name: str, told: dict[str, Any]) -> list[Path]:
    """The files of one split, as `datasets` names them."""
    count = len(told.get("shard_lengths") or ())
    if count < 2:
        return [folder / f"{name}-{told['name']}.arrow"]
    return [folder / f"{name}-{told['name']}-{i:05}-of-{count:05}.arrow" for i in range(count)]


def find_prepared(hub: HubRef, config: str | None, commit: str, guess: bool = False) -> Prepared | None:
    """What `datasets` has prepared of a commit; without `config`, what that meant when it was prepared.

    With `guess`, the only configuration that is here stands for one that was never looked up.
    """
    from huggingface_hub import constants

    cache = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets")).expanduser()
    named = config or recall(HubRef(hub.repo, commit, hub.kind), None).get("config")
    if not named and not guess:
        return None
    found = []
    for info in cache.glob(f"*/{escape(named) if named else '*'}/*/{commit}/dataset_info.json"):
        prepared = Prepared(info.parent, commit, info.parts[-4])
        with suppress(OSError, ValueError, KeyError):  # then it is prepared again
            if prepared.info()["config_name"] == prepared.config:
                found.append(prepared)
    return found[0] if len(found) == 1 else None


def note_of(hub: HubRef, config: str | None) -> Path:
    name = quote(f"{hub.repo}@{hub.revision or 'main'}" + (f" {config}" if config else ""), safe="@ ")
    return cache_folder("datasets") / f"{name}.json"


def recall(hub: HubRef, config: str | None) -> dict[str, str]:
    """Which commit and configuration a revision meant when last prepared; without a note, the hub's cache says."""
    from huggingface_hub import constants

    with suppress(OSError, ValueError, OutputError):
        return json.loads(note_of(hub, config).read_text(encoding="utf-8"))
    refs = Path(constants.HF_HUB_CACHE, "datasets--" + hub.repo.replace("/", "--"), "refs")
    with suppress(OSError):
        return {"commit": (refs / (hub.revision or "main")).read_text().strip()}
    return {}


def remember(hub: HubRef, config: str | None, found: Prepared) -> None:
    """Note what a revision and configuration mean now: offline, that is the only way from a branch to its commit."""
    text = json.dumps({"commit": found.commit, "config": found.config})
    for revision in (hub.revision, found.commit):
        with suppress(OSError, OutputError):  # a cache that may only be read is of use all the same
            note = note_of(HubRef(hub.repo, revision, hub.kind), config)
            if not note.is_file() or note.read_text(encoding="utf-8") != text:
                write_text(note, text)
