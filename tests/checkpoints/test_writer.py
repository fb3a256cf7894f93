"""Written files depend on nothing but what is in them; folders appear whole or not at all."""

import os
import random
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from clipfuse.checkpoints import writer as writer_module
from clipfuse.checkpoints.safetensors_file import SafetensorsFile, TensorSpec
from clipfuse.checkpoints.writer import SafetensorsWriter, check_output, new_folder, write_text
from clipfuse.errors import OutputError

SHAPES = {"b": (300, 7), "a": (1000,), "scalar": (), "empty": (0, 3), "odd": (3,)}
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"{name}.{dtype}": torch.randn(shape, generator=generator).to(dtype)
        for name, shape in SHAPES.items()
        for dtype in DTYPES
    }


def open_writer(path: Path, tensors: dict[str, Tensor]) -> SafetensorsWriter:
    return SafetensorsWriter(path, {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in tensors.items()})


def listing(folder: Path) -> list[str]:
    """Everything below a folder, hidden files too, but clipfuse's own mark."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != ".clipfuse")


def test_safetensors_reads_what_was_written(tmp_path: Path, tensors: dict[str, Tensor]):
    path = tmp_path / "a.safetensors"
    with open_writer(path, tensors) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(tensors)
        for name, tensor in tensors.items():
            assert torch.equal(file.get_tensor(name), tensor)
            assert file.get_tensor(name).dtype == tensor.dtype
    own = SafetensorsFile(path)
    assert all(torch.equal(own.read(name), tensor) for name, tensor in tensors.items())


def test_bytes_do_not_depend_on_the_order_of_writing(tmp_path: Path, tensors: dict[str, Tensor]):
    with open_writer(tmp_path / "whole", tensors) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    places = [
        (name, start, stop)
        for name, tensor in tensors.items()
        for start, stop in pairwise([*range(0, tensor.numel(), 97), tensor.numel()])
    ]
    random.Random(0).shuffle(places)
    with open_writer(tmp_path / "slices", tensors) as writer, ThreadPoolExecutor(4) as threads:
        jobs = [threads.submit(writer.write, n, tensors[n].reshape(-1)[start:stop], start) for n, start, stop in places]
        for job in jobs:
            job.result()
    assert (tmp_path / "slices").read_bytes() == (tmp_path / "whole").read_bytes()


def test_values_in_any_memory_layout(tmp_path: Path):
    matrix = torch.arange(12.0).reshape(3, 4)
    with open_writer(tmp_path / "a", {"t": matrix.t(), "every second": matrix[:, ::2]}) as writer:
        writer.write("t", matrix.t())
        writer.write("every second", matrix[:, ::2].requires_grad_())
    with safe_open(tmp_path / "a", "pt") as file:
        assert torch.equal(file.get_tensor("t"), matrix.t())
        assert torch.equal(file.get_tensor("every second"), matrix[:, ::2])


def test_a_new_folder_takes_its_name_at_the_end(tmp_path: Path):
    with new_folder(tmp_path / "deep" / "out") as folder:
        (folder / "config.json").write_text("{}")
        assert not (tmp_path / "deep" / "out").exists()
        assert folder.parent == tmp_path / "deep"
    assert listing(tmp_path) == ["deep", "deep/out", "deep/out/config.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OutputError])
def test_an_error_leaves_nothing(tmp_path: Path, error: type[BaseException]):
    with pytest.raises(error):
        break_off(tmp_path / "out", error)
    assert listing(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_keeps_the_old_result(tmp_path: Path, error: type[BaseException]):
    write_result(tmp_path / "out", "old")
    with pytest.raises(error):
        break_off(tmp_path / "out", error)
    assert listing(tmp_path) == ["out", "out/clipfuse.json", "out/stale"]
    assert (tmp_path / "out" / "clipfuse.json").read_text() == "old"


def test_overwriting_replaces_the_whole_folder(tmp_path: Path):
    write_result(tmp_path / "out", "old")
    with new_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "clipfuse.json").write_text("new")
    assert listing(tmp_path) == ["out", "out/clipfuse.json"]
    assert (tmp_path / "out" / "clipfuse.json").read_text() == "new"


@pytest.mark.parametrize("filled", [True, False])
def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path, filled: bool):
    (tmp_path / "disk").mkdir()
    if filled:
        write_result(tmp_path / "disk", "old")
    (tmp_path / "out").symlink_to("disk")
    with new_folder(tmp_path / "out", overwrite=True) as folder:
        (folder / "clipfuse.json").write_text("new")
    assert (tmp_path / "out").is_symlink()
    assert listing(tmp_path) == ["disk", "disk/clipfuse.json", "out"]
    assert (tmp_path / "out" / "clipfuse.json").read_text() == "new"


def test_an_empty_folder_is_taken(tmp_path: Path):
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as folder:
        (folder / "config.json").write_text("{}")
    assert listing(tmp_path) == ["out", "out/config.json"]


def test_what_is_there_is_not_touched_unasked(tmp_path: Path):
    write_result(tmp_path / "result", "old")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("mine")
    (tmp_path / "file").write_text("mine")
    before = listing(tmp_path)
    refused = {
        ("result", False): "is not empty; choose another --out or pass --overwrite",
        ("photos", False): "is not empty; choose another --out or pass --overwrite",
        ("photos", True): "holds 'a.jpg', which clipfuse did not write; it is not overwritten",
        ("file", True): "is a file; the output is a folder",
    }
    for (name, overwrite), said in refused.items():
        for refuse in (check_output, lambda *arguments: new_folder(*arguments).__enter__()):
            with pytest.raises(OutputError) as caught:
                refuse(tmp_path / name, overwrite)
            assert str(caught.value) == f"{tmp_path / name}: {said}"
    assert listing(tmp_path) == before


def test_what_appears_meanwhile_is_kept(tmp_path: Path):
    with pytest.raises(OutputError, match="is not empty"), new_folder(tmp_path / "out") as folder:
        (folder / "config.json").write_text("{}")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "other").write_text("another run's")
    assert listing(tmp_path) == ["out", "out/other"]


def test_parents_that_were_made_go_with_a_failure(tmp_path: Path):
    with pytest.raises(ValueError, match="x"), new_folder(tmp_path / "deep/er/out"):
        raise ValueError("x")
    assert listing(tmp_path) == []


def test_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the superuser may write everywhere
    with pytest.raises(OutputError, match=rf"^{tmp_path}/out: cannot be written: no permission in {tmp_path}$"):
        check_output(tmp_path / "out")


def test_a_full_disk_is_known_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tensors: dict[str, Tensor]):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=writer_module.HEADROOM + 100))
    with (
        pytest.raises(OutputError, match=r"bytes are needed, 1,048,676 are free$"),
        new_folder(tmp_path / "out") as new,
    ):
        open_writer(new / "model.safetensors", tensors)
    assert listing(tmp_path) == []


def test_what_the_system_refuses_is_one_line(tmp_path: Path):
    with pytest.raises(OutputError, match=rf"^{tmp_path}/none/a: cannot be written: No such file or directory$"):
        open_writer(tmp_path / "none" / "a", {"a": torch.ones(1)})
    with open_writer(tmp_path / "a", {"a": torch.ones(1)}) as writer:
        os.close(writer.file)
        writer.file = os.open("/dev/full", os.O_WRONLY)
        with pytest.raises(OutputError, match=r"a: cannot be written: no space left on the device$"):
            writer.write("a", torch.ones(1))


def test_texts_are_replaced_whole(tmp_path: Path):
    write_text(tmp_path / "a", "first")
    write_text(tmp_path / "a", "τ")
    assert (tmp_path / "a").read_text(encoding="utf-8") == "τ"
    with pytest.raises(OutputError):
        write_text(tmp_path / "none" / "a", "text")
    assert listing(tmp_path) == ["a"]


def break_off(folder: Path, error: type[BaseException]) -> None:
    with new_folder(folder, overwrite=True) as temporary:
        (temporary / "clipfuse.json").write_text("new")
        raise error


def write_result(folder: Path, text: str) -> None:
    """What an earlier command left: two files and clipfuse's mark."""
    with new_folder(folder, overwrite=True) as temporary:
        (temporary / "clipfuse.json").write_text(text)
        (temporary / "stale").write_text(text)
