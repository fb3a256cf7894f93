"""safetensors files against safetensors' own reader: values, laziness, views that cannot change the file."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipfuse.checkpoints.safetensors_file import DTYPES, SafetensorsFile


def write_by_hand(path: Path, header: object, data: bytes, pad: int = 0) -> Path:
    """A file with any header, sound or not; `pad` spaces put the tensors at any address."""
    raw = json.dumps(header).encode() + b" " * pad
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
    return path


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_reads_what_safetensors_wrote(tmp_path: Path, dtype: torch.dtype):
    shapes = {"matrix": (3, 5), "scalar": (), "empty": (0, 4), "vector": (7,)}
    generator = torch.Generator().manual_seed(0)
    tensors = {n: (torch.randn(shape, generator=generator) * 9).to(dtype) for n, shape in shapes.items()}
    save_file(tensors, tmp_path / "a.safetensors", {"format": "pt", "made": "here"})
    file = SafetensorsFile(tmp_path / "a.safetensors")
    expected = load_file(tmp_path / "a.safetensors")
    assert file.metadata == {"format": "pt", "made": "here"}
    assert set(file.specs) == set(expected)
    for name, tensor in expected.items():
        found, spec = file.read(name), file.specs[name]
        assert (spec.shape, spec.dtype, spec.nbytes) == (tuple(tensor.shape), tensor.dtype, tensor.nbytes)
        assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype)
        assert torch.equal(found, tensor)


@pytest.mark.parametrize("pad", range(8))
def test_tensors_at_any_address(tmp_path: Path, pad: int):
    tensor = torch.arange(5, dtype=torch.float32)
    header = {"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]}}
    file = SafetensorsFile(write_by_hand(tmp_path / "a.safetensors", header, tensor.numpy().tobytes(), pad))
    found = file.read("a")
    assert torch.equal(found, tensor)
    assert found.data_ptr() % found.element_size() == 0, "vector instructions need it on some machines"


def test_a_read_tensor_is_a_view_that_cannot_change_the_file(tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.ones(5000), "b": torch.zeros(3)}, path)
    before = path.read_bytes()
    file = SafetensorsFile(path)
    first, second = file.read("a"), file.read("a")
    assert first.data_ptr() == second.data_ptr()
    first.fill_(2)
    del file, first, second
    assert path.read_bytes() == before


def test_released_tensors_are_read_again(tmp_path: Path):
    tensors: dict[str, Tensor] = {name: torch.randn(50_000) for name in "abc"}
    save_file(tensors, tmp_path / "a.safetensors")
    file = SafetensorsFile(tmp_path / "a.safetensors")
    for name in "abc":
        assert torch.equal(file.read(name), tensors[name])
        file.release(name)
    for name in "abc":
        assert torch.equal(file.read(name), tensors[name])


def test_a_file_outlives_its_reader(tmp_path: Path):
    save_file({"a": torch.ones(10)}, tmp_path / "a.safetensors")
    tensor = SafetensorsFile(tmp_path / "a.safetensors").read("a")
    assert tensor.sum() == 10
