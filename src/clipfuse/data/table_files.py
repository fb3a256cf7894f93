"""Finding and opening the parquet or arrow files of a split, as the hub or `save_to_disk` lays them out."""

import json
import re
from collections.abc import Sequence
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING

from clipfuse.data.tables import Arrow, Parquet, Source, Table, make_table, table_errors
from clipfuse.errors import TaskError
from clipfuse.tasks import Task

if TYPE_CHECKING:
    import pyarrow as pa

SHARD = re.compile(r"(?P<number>\d{5})-of-(?P<count>\d{5})")
STATE = "state.json"
"""What `save_to_disk` of datasets writes beside the arrow files of a split."""


def open_table(task: Task, folder: Path, split: str) -> Table:
    """A split of a task in parquet or arrow files under `folder`, as the hub or `save_to_disk` lays them out.

    Raises:
        TaskError: there are no such files, they cannot be read, or their columns are not the task's.
    """
    source, where = task.splits[split], str(folder / task.splits[split])
    with table_errors(task, where):
        files = table_files(folder, source)
        if not files:
            raise TaskError(f"{task.name}: {folder}: holds no parquet or arrow files of the split {source!r}")
        if absent := absent_shards(files):
            raise TaskError(f"{task.name}: {where}: has no shard {', '.join(absent)}")
        if files[0].suffix == ".arrow":
            opened: Source = Arrow(map_arrow(files))
        else:
            opened = open_parquet(files)
        stats = {path.relative_to(folder).as_posix(): path.stat() for path in files}
    listing = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
    return make_table(task, where, opened, {"folder": str(folder.resolve()), "files": listing})


def open_parquet(files: Sequence[Path]) -> Parquet:
    """Parquet files of one split; their columns must agree. Raises ArrowInvalid."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    opened: list[pq.ParquetFile] = []
    for path in files:
        try:
            opened.append(pq.ParquetFile(path, memory_map=True, page_checksum_verification=True))
        except pa.ArrowException as error:
            raise pa.ArrowInvalid(f"{path.name}: {error}") from None
        if not opened[-1].schema_arrow.equals(opened[0].schema_arrow):
            raise pa.ArrowInvalid(f"{path.name} has other columns than {files[0].name}")
    return Parquet(opened)


def is_table(folder: Path, split: str) -> bool:
    """Whether `folder` holds table files of a split, called as the source calls it."""
    try:
        return bool(table_files(folder, split))
    except (OSError, ValueError):
        return True  # a damaged state.json: opening says so


def table_files(folder: Path, split: str) -> list[Path]:
    """The files of a split, in order; none if the folder holds something else."""
    for saved in (folder / split, folder):
        if (saved / STATE).is_file():
            state = json.loads((saved / STATE).read_text(encoding="utf-8"))
            if saved != folder or state.get("_split") in (None, split):
                return [saved / file["filename"] for file in state["_data_files"]]
    name = escape(split)
    for ending in (".parquet", ".arrow"):
        for pattern in (f"{name}/*", f"{name}-*", f"data/{name}-*", f"data/{name}/*", name):
            if found := sorted(path for path in folder.glob(pattern + ending) if path.is_file()):
                return found
    return []


def absent_shards(files: Sequence[Path]) -> list[str]:
    """Numbers of shards that files named `…-00000-of-00003…` lack."""
    found = [match for path in files if (match := SHARD.search(path.name))]
    if len(found) < len(files):
        return []
    there = {match["number"] for match in found}
    return [f"{i:05} of {found[0]['count']}" for i in range(int(found[0]["count"])) if f"{i:05}" not in there]


def map_arrow(files: Sequence[Path]) -> "pa.Table":
    """Arrow files, streams or not, as one memory-mapped table."""
    import pyarrow as pa

    tables = []
    for path in files:
        raw = pa.memory_map(str(path))
        is_file = raw.read(6) == b"ARROW1"
        raw.seek(0)
        try:
            tables.append((pa.ipc.open_file if is_file else pa.ipc.open_stream)(raw).read_all())
        except (pa.ArrowException, OSError) as error:
            raise pa.ArrowInvalid(f"{path.name}: {error}") from None
    return pa.concat_tables(tables)
