"""Tables of encoded images and labels, of parquet or arrow files: rows are read one by one, from any thread.

Arrow files are memory-mapped. Of parquet files the last two row groups are held in memory: rows are read in order.
"""

import json
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from clipfuse.data.labels import check_names, label_numbers
from clipfuse.errors import TaskError, unknown
from clipfuse.tasks import Task

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


@dataclass(frozen=True)
class Table:
    """A split's labels, and how to read the encoded bytes of image i (b"" where it has none)."""

    labels: list[int]
    read: Callable[[int], bytes]
    label_of: Callable[[int], str]
    """What image i is called in errors."""
    origin: Mapping[str, Any]
    """What identifies the content, as JSON: a hub's commit, or sizes and times of files."""


@runtime_checkable
class Source(Protocol):
    """Rows in files."""

    @property
    def schema(self) -> "pa.Schema": ...

    def column(self, name: str) -> "pa.ChunkedArray":
        """A whole column; no other is read."""
        ...

    def cells(self, name: str) -> Callable[[int], "pa.Scalar"]:
        """How to get one row of a column, from any thread."""
        ...


@dataclass(frozen=True)
class Arrow:
    """Memory-mapped rows."""

    table: "pa.Table"

    @property
    def schema(self) -> "pa.Schema":
        return self.table.schema

    def column(self, name: str) -> "pa.ChunkedArray":
        return self.table[name]

    def cells(self, name: str) -> Callable[[int], "pa.Scalar"]:
        return self.table[name].__getitem__


@dataclass(frozen=True)
class Parquet:
    """Rows in parquet files; page checksums are compared where the files have them."""

    files: "Sequence[pq.ParquetFile]"

    @property
    def schema(self) -> "pa.Schema":
        return self.files[0].schema_arrow

    def column(self, name: str) -> "pa.ChunkedArray":
        import pyarrow as pa

        return pa.concat_tables([file.read([name]) for file in self.files])[name]

    def cells(self, name: str) -> Callable[[int], "pa.Scalar"]:
        groups = [(file, number) for file in self.files for number in range(file.num_row_groups)]
        starts = [0, *accumulate(file.metadata.row_group(number).num_rows for file, number in groups)]
        one_at_a_time = threading.Lock()

        @lru_cache(2)
        def load(group: int) -> "pa.ChunkedArray":
            file, number = groups[group]
            return file.read_row_group(number, [name])[name]

        def cell(i: int) -> "pa.Scalar":
            group = bisect_right(starts, i) - 1
            with one_at_a_time:
                rows = load(group)
            return rows[i - starts[group]]

        return cell


def make_table(task: Task, where: str, source: Source, origin: Mapping[str, Any]) -> Table:
    """A task's two columns of a table that is called `where` in errors.

    Raises:
        TaskError: a column is not there, or does not hold what it should.
    """
    from pyarrow import types

    schema, image, label = source.schema, task.image_column, task.label_column
    for name in (image, label):
        if name not in schema.names:
            raise TaskError(f"{task.name}: {where}: " + unknown("column", name, schema.names))
    kind = schema.field(image).type
    nested = types.is_struct(kind)
    if not holds_images(kind):
        raise TaskError(
            f"{task.name}: {where}: column {image!r} holds {kind}; images are bytes, or structs with bytes and path"
        )

    def label_of(i: int) -> str:
        return f"{where}[{i}]"

    with table_errors(task, where):
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        check_names(task, where, features.get(label))
        labels = label_numbers(task, source.column(label), label_of)
        cell = source.cells(image)

    def read(i: int) -> bytes:
        with table_errors(task, label_of(i)):
            found: Any = cell(i)
            if not found.is_valid:
                return b""
            raw = found["bytes"].as_py() if nested else found.as_py()
            path = found["path"].as_py() if nested and raw is None else None
        return raw or (Path(path).read_bytes() if path else b"")

    return Table(labels, read, label_of, {**origin, "image_column": image})


def holds_images(kind: "pa.DataType") -> bool:
    """Whether a column of this type can hold encoded images: bytes, or structs of bytes and path."""
    from pyarrow import types

    if types.is_struct(kind):
        return {"bytes", "path"} <= {field.name for field in kind.fields} and holds_images(kind.field("bytes").type)
    return any(
        test(kind)
        for test in (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_binary_view)
    )


@contextmanager
def table_errors(task: Task, where: str) -> Iterator[None]:
    """Tell what pyarrow raises for damaged and missing files in one line."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, json.JSONDecodeError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise TaskError(f"{task.name}: {where}: cannot be read ({first})") from None
