"""Local table files: every layout, every kind of label and image column, and damage."""

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipfuse.data.hub_data import is_table, open_table
from clipfuse.errors import TaskError
from clipfuse.tasks import Task

CLASSES = ["cat", "dog", "traffic light"]
IMAGES = [bytes([i]) * (10 + i) for i in range(10)]
LABELS = [i % 3 for i in range(10)]
STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def a_task(**tree: Any) -> Task:
    return Task(name="t", classes=CLASSES, templates=["a {c}."], folder="unused", **tree)


def a_table(labels: Any = LABELS, images: Any = None, start: int = 0, stop: int = 10, names: Any = None) -> pa.Table:
    cells = pa.array([{"bytes": raw, "path": None} for raw in IMAGES], STRUCT) if images is None else images
    table = pa.table({"image": cells, "label": labels}).slice(start, stop - start)
    features = {"label": {"_type": "ClassLabel", "names": names}} if names else {}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_parquet(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=3, write_page_checksum=True)


def write_stream(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)


def write_file(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=4)


def write_saved(folder: Path, layout: str) -> None:
    """What `save_to_disk` writes, by datasets itself."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    rows = datasets.Dataset(a_table())
    if layout == "one split":
        rows.save_to_disk(folder, num_shards=2)
    else:
        datasets.DatasetDict({"train": rows.select([0]), "test": rows}).save_to_disk(
            folder, num_shards={"train": 1, "test": 2}
        )
        (folder / "test" / "cache-1234.arrow").write_bytes(b"not ours")


LAYOUTS: dict[str, Any] = {
    f"{pattern} {write.__name__}": lambda folder, pattern=pattern, write=write, ending=ending: [
        write(a_table(start=5 * i, stop=5 * i + 5), folder / f"{pattern}-{i:05}-of-00002{ending}") for i in range(2)
    ]
    for pattern in ("test/part", "test", "data/test")
    for write, ending in ((write_parquet, ".parquet"), (write_stream, ".arrow"), (write_file, ".arrow"))
} | {f"saved {layout}": lambda folder, layout=layout: write_saved(folder, layout) for layout in ("one split", "dict")}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path: Path, layout: str):
    LAYOUTS[layout](tmp_path)
    assert is_table(tmp_path, "test")
    if layout != "saved one split":
        assert not is_table(tmp_path, "validation")
    table = open_table(a_task(), tmp_path, "test")
    assert table.labels == LABELS
    assert [table.read(i) for i in range(10)] == IMAGES
    assert table.label_of(3) == f"{tmp_path}/test[3]"
    files = table.origin["files"]
    assert len(files) == 2
    assert all((tmp_path / name).stat().st_size == size for name, (size, _) in files.items())
    assert json.loads(json.dumps(table.origin))["image_column"] == "image"


def test_an_image_folder_is_no_table(tmp_path: Path):
    (tmp_path / "test" / "cat").mkdir(parents=True)
    (tmp_path / "test" / "cat" / "0.png").write_bytes(b"")
    assert not is_table(tmp_path, "test")
    with pytest.raises(TaskError, match="holds no parquet or arrow files of the split 'test'"):
        open_table(a_task(), tmp_path, "test")


@pytest.mark.parametrize("write", [write_parquet, write_stream])
def test_many_threads_read_at_once(tmp_path: Path, write: Callable[[pa.Table, Path], None]):
    images = [i.to_bytes(2, "little") * 500 for i in range(2000)]
    write(
        a_table([0] * 2000, pa.array(images), stop=2000),
        tmp_path / ("test.parquet" if write is write_parquet else "test.arrow"),
    )
    table = open_table(a_task(), tmp_path, "test")
    start = threading.Barrier(8)

    def work(worker: int) -> bool:
        start.wait()
        rows = range(worker, 2000, 8) if worker % 2 else range(1999 - worker, -1, -8)
        return all(table.read(i) == images[i] for i in rows)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(8)))


LABEL_COLUMNS = {
    "int8": pa.array(LABELS, pa.int8()),
    "uint64": pa.array(LABELS, pa.uint64()),
    "names": pa.array([CLASSES[i] for i in LABELS]),
    "names as files have them": pa.array([["Cat", "dog", "traffic_light"][i] for i in LABELS], pa.large_string()),
    "dictionary": pa.array([CLASSES[i] for i in LABELS]).dictionary_encode(),
}


@pytest.mark.parametrize("kind", LABEL_COLUMNS)
def test_labels(tmp_path: Path, kind: str):
    write_stream(a_table(LABEL_COLUMNS[kind]), tmp_path / "test.arrow")
    assert open_table(a_task(), tmp_path, "test").labels == LABELS


def test_booleans_and_other_columns(tmp_path: Path):
    table = pa.table({"jpg": IMAGES, "cls": [i % 2 == 1 for i in range(10)]})
    write_parquet(table, tmp_path / "test.parquet")
    opened = open_table(a_task(image_column="jpg", label_column="cls"), tmp_path, "test")
    assert opened.labels == [i % 2 for i in range(10)]
    assert opened.read(7) == IMAGES[7]


WRONG = {
    "[4]: has no label in 'label'": a_table([0, 1, 2, 0, None, 2, 0, 1, None, 0]),
    "[2]: 'label' is nan in a column of double; labels are whole numbers, or names of classes": a_table(
        [0.0, 1.0, float("nan")] + [0.0] * 7
    ),
    "[0]: 'label' is 1.0 in a column of double; labels are whole numbers, or names of classes": a_table([1.0] * 10),
    "[3]: unknown class 'dgo'; did you mean 'dog'? Known: cat, dog, traffic light": a_table(["cat"] * 3 + ["dgo"] * 7),
    "[0]: 'label' in a column of list<item: int64>; labels are whole numbers, or names of classes": a_table([[1]] * 10),
    ": column 'label' has 2 classes, the task 3": a_table(names=["cat", "dog"]),
    ": column 'image' holds string; images are bytes, or structs with bytes and path": a_table(images=["a.png"] * 10),
    ": column 'image' holds int64; images are bytes, or structs with bytes and path": a_table(images=[0] * 10),
    ": column 'image' holds list<item: int64>; images are bytes, or structs with bytes and path": a_table(
        images=[[0]] * 10
    ),
    ": unknown column 'image'; did you mean 'images'? Known: images, label": a_table().rename_columns(
        ["images", "label"]
    ),
}


@pytest.mark.parametrize("words", WRONG)
@pytest.mark.parametrize("write", [write_parquet, write_file])
def test_columns_that_do_not_fit(tmp_path: Path, words: str, write: Callable[[pa.Table, Path], None]):
    write(WRONG[words], tmp_path / f"test{'.parquet' if write is write_parquet else '.arrow'}")
    with pytest.raises(TaskError) as error:
        open_table(a_task(), tmp_path, "test")
    item = str(error.value).replace("list<element:", "list<item:")
    assert item == f"t: {tmp_path}/test{words}"


def test_rows_without_image_and_images_in_files(tmp_path: Path):
    (tmp_path / "a.png").write_bytes(b"picture")
    cells = [
        None,
        {"bytes": None, "path": None},
        {"bytes": b"", "path": None},
        {"bytes": None, "path": str(tmp_path / "a.png")},
    ]
    write_stream(a_table([0] * 4, pa.array(cells, STRUCT), stop=4), tmp_path / "test.arrow")
    table = open_table(a_task(), tmp_path, "test")
    assert [table.read(i) for i in range(4)] == [b"", b"", b"", b"picture"]


def test_damage_is_one_line(tmp_path: Path):
    path = tmp_path / "test-00000-of-00002.parquet"
    write_parquet(a_table(), path)
    with pytest.raises(TaskError, match=r"test: has no shard 00001 of 00002$"):
        open_table(a_task(), tmp_path, "test")
    path.rename(tmp_path / "test.parquet")
    raw = (tmp_path / "test.parquet").read_bytes()
    column = pq.ParquetFile(tmp_path / "test.parquet").metadata.row_group(3).column(0)
    at = column.dictionary_page_offset + column.total_compressed_size - 1
    (tmp_path / "test.parquet").write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
    table = open_table(a_task(), tmp_path, "test")
    assert table.read(0) == IMAGES[0]
    with pytest.raises(TaskError, match=r"test\[9\]: cannot be read \(.*CRC"):
        table.read(9)
    for damaged in (raw[:-9], b"", raw[:4]):
        (tmp_path / "test.parquet").write_bytes(damaged)
        with pytest.raises(TaskError, match=r"t: .*test: cannot be read \(test.parquet: "):
            open_table(a_task(), tmp_path, "test")
    (tmp_path / "test.parquet").unlink()
    write_stream(a_table(), tmp_path / "test.arrow")
    raw = (tmp_path / "test.arrow").read_bytes()
    for damaged in (raw[:-300], b"", raw[:4]):
        (tmp_path / "test.arrow").write_bytes(damaged)
        with pytest.raises(TaskError, match=r"t: .*test: cannot be read \(test.arrow: "):
            open_table(a_task(), tmp_path, "test")
    write_stream(a_table(), tmp_path / "test" / "0.arrow")
    write_stream(pa.table({"other": [1]}), tmp_path / "test" / "1.arrow")
    with pytest.raises(TaskError, match=r"test: cannot be read \("):
        open_table(a_task(), tmp_path, "test")
