"""torch's own files against torch: state dicts, whole modules of classes that are gone, TorchScript, damage."""

import argparse
import os
import re
import sys
import tarfile
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign_modules import save_foreign
from safetensors.torch import save_file
from torch import Tensor, nn

from clipfuse.checkpoints.store import Store
from clipfuse.checkpoints.torch_file import TorchFile
from clipfuse.errors import CheckpointError

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.float8_e4m3fn)
both_formats = pytest.mark.parametrize("new", [True, False], ids=["zip", "before 1.6"])
unknown_source = pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")


def raw(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def assert_same(file: TorchFile, expected: dict[str, Tensor]) -> None:
    assert list(file.specs) == list(expected)
    for name, tensor in expected.items():
        found, spec = file.read(name), file.specs[name]
        assert (spec.shape, spec.dtype, spec.nbytes) == (tuple(tensor.shape), tensor.dtype, tensor.nbytes)
        assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype)
        assert torch.equal(raw(found), raw(tensor)), name
        assert found.data_ptr() % found.element_size() == 0, "vector instructions need it on some machines"
        file.release(name)
        assert torch.equal(raw(file.read(name)), raw(tensor))
        room = bytearray(max(tensor.nbytes - tensor.itemsize, 0))
        assert file.read_into(name, 1, memoryview(room)) == tensor.is_contiguous()
        assert not tensor.is_contiguous() or room == raw(tensor)[tensor.itemsize :].numpy().tobytes()


@both_formats
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_state_dicts(tmp_path: Path, new: bool, protocol: int):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(60, generator=generator)
    tensors = {str(dtype): (values * 9).to(dtype).reshape(3, 1, 20) for dtype in DTYPES}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 4), "parameter": nn.Parameter(torch.ones(3))}
    tensors |= {"all": values, "part": values[10:20], "strided": values[::7], "turned": values.reshape(6, 10).T}
    tensors |= {"corner": values.reshape(6, 10)[:1, :1]}
    torch.save(tensors, tmp_path / "a.pt", pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    file = TorchFile(tmp_path / "a.pt")
    assert isinstance(file, Store)
    assert_same(file, {name: tensor.detach() for name, tensor in tensors.items()})
    assert file.classes == frozenset()
    whole, part = file.read("all"), file.read("part")
    assert not new or part.data_ptr() - whole.data_ptr() == 40, "both are views of one mapping"


@both_formats
@unknown_source
@pytest.mark.parametrize("options", [{}, {"pickle_protocol": 4}, {"parallel": True}], ids=["", "4", "parallel"])
def test_whole_modules_of_classes_that_are_gone(tmp_path: Path, monkeypatch: Any, new: bool, options: dict[str, Any]):
    path = tmp_path / "finetuned.pt"
    state = save_foreign(monkeypatch, path, "ImageEncoder", _use_new_zipfile_serialization=new, **options)
    assert "model.attn_mask" not in state
    file = TorchFile(path)
    assert_same(file, {name.removeprefix("module."): tensor for name, tensor in state.items()})
    named = {"src.modeling.ImageEncoder", "open_clip.model.QuickGELU", "open_clip.transform._convert_to_rgb"}
    assert named < file.classes
    assert not any(name.startswith(("torch._utils", "collections")) for name in file.classes)
    assert file.attributes["model.visual.resblocks.1.attn.num_heads"] == 2
    assert file.attributes["cache_dir"] == "/data/cache"
    assert not {"src", "src.modeling", "open_clip", "open_clip.model"} & set(sys.modules)


def test_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    state = save_foreign(monkeypatch, tmp_path / "head_MNIST.pt", "ClassificationHead")
    file = TorchFile(tmp_path / "head_MNIST.pt")
    assert_same(file, state)
    assert (file.attributes["normalize"], file.attributes["out_features"]) == (True, 5)


@both_formats
@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_nested_state_dicts(tmp_path: Path, new: bool, key: str):
    state = OrderedDict({"module.a.weight": torch.ones(3), "module.b": torch.zeros(2)})
    beside = {"epoch": 3, "args": argparse.Namespace(lr=1e-5), "optimizer": {"state": {0: torch.ones(9)}}}
    torch.save(beside | {key: state}, tmp_path / "a.ckpt", _use_new_zipfile_serialization=new)
    assert_same(TorchFile(tmp_path / "a.ckpt"), {"a.weight": torch.ones(3), "b": torch.zeros(2)})


def test_numbers_beside_tensors(tmp_path: Path):
    torch.save({"visual.proj": torch.ones(2), "input_resolution": 224, "version": None}, tmp_path / "a.pt")
    file = TorchFile(tmp_path / "a.pt")
    assert (list(file.specs), file.attributes) == (["visual.proj"], {"input_resolution": 224})


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 2, bias=False)
        self.blocks = nn.ModuleList([nn.Linear(4, 4).half().float(), nn.BatchNorm1d(4)])
        self.heads, self.sizes, self.kinds, self.activation = 8, [1, 2], {"a": 0.5}, "gelu"
        self.register_buffer("input_resolution", torch.tensor(224))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).mean((2, 3)) * self.heads + self.sizes[0] + self.kinds["a"]
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("compile", [torch.jit.script, lambda module: torch.jit.trace(module, torch.ones(2, 3, 4, 4))])
def test_torchscript(tmp_path: Path, compile: Callable[[nn.Module], Any]):
    made = compile(Scripted())
    torch.jit.save(made, tmp_path / "ViT-B-32.pt")
    file = TorchFile(tmp_path / "ViT-B-32.pt")
    assert_same(file, made.state_dict())
    assert any(name.startswith("__torch__.torch.nn.modules.conv.") for name in file.classes)


@both_formats
def test_opening_costs_next_to_nothing(tmp_path: Path, new: bool):
    torch.save({"a": torch.zeros(25_000_000)}, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    tracemalloc.start()
    file = TorchFile(tmp_path / "a.pt")
    first = file.read("a") if new else None
    cost = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert cost < 1 << 20
    assert first is None or first.data_ptr() == file.read("a").data_ptr(), "reading only maps"


@both_formats
def test_a_read_tensor_cannot_change_the_file_and_outlives_its_reader(tmp_path: Path, new: bool):
    torch.save({"a": torch.zeros(5000)}, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    before = (tmp_path / "a.pt").read_bytes()
    found = TorchFile(tmp_path / "a.pt").read("a")
    (tmp_path / "a.pt").rename(tmp_path / "b.pt")
    assert not found.any()
    found.fill_(1)
    assert (tmp_path / "b.pt").read_bytes() == before


ODD: dict[str, tuple[Any, str]] = {
    "a list": ([torch.ones(1)], "holds a list; takes a state dict"),
    "a tensor": (torch.ones(1), "holds a tensor; takes a state dict"),
    "nothing": ({}, "holds no tensors by name"),
    "numbers": ({"a": 1}, "holds no tensors by name"),
    "a list beside": ({"a": torch.ones(1), "b": [1]}, "'b' is a list; takes tensors by name"),
    "nested twice": ({"model": {"model": {"a": torch.ones(1)}}}, "'model' is a mapping; takes"),
    "a module beside": ({"a": torch.ones(1), "b": nn.Linear(1, 1)}, "'b' is a torch.nn.modules.linear.Linear"),
    "no module": (argparse.Namespace(a=torch.ones(1)), "what it holds is an argparse.Namespace, which is no module"),
    "a numbered tensor": ({1: torch.ones(1)}, "is no name of a tensor"),
    "a name of two lines": ({"a\nb": torch.ones(1)}, r"'a\nb' is no name of a tensor"),
    "sparse": ({"a": torch.eye(2).to_sparse()}, "'a' is sparse; plain tensors are read"),
    "on no device": ({"a": torch.ones(2, device="meta")}, "'a' has no values (it is on the meta device)"),
    "conjugated": ({"a": torch.ones(2, dtype=torch.complex64).conj()}, "'a' is a conjugated"),
    "expanded": ({"a": torch.ones(1).expand(1 << 38)}, "'a' has fewer values stored than its shape says"),
}


@both_formats
@unknown_source
@pytest.mark.parametrize(("value", "said"), ODD.values(), ids=ODD)
def test_odd_contents(tmp_path: Path, new: bool, value: Any, said: str):
    torch.save(value, tmp_path / "a.pt", _use_new_zipfile_serialization=new)
    with pytest.raises(CheckpointError, match=re.escape(said)) as caught:
        TorchFile(tmp_path / "a.pt")
    assert str(caught.value).startswith(f"{tmp_path / 'a.pt'}: ")


OTHERS = {
    b"": "is empty",
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 349220180\n": "is a git-lfs pointer",
    b"\n<!DOCTYPE html><html><head><title>404</title></head></html>": "is a web page",
    b"<html>Sign in</html>": "is a web page",
    b"weights": "is no torch file, or is damaged (7 bytes)",
    b"\x80\x02}.": "is a pickle, but none of torch's",
    b"\x80\x04\x95": "its pickle is",
    b"PK": "is a damaged or truncated zip",
}


@pytest.mark.parametrize(("raw", "said"), OTHERS.items(), ids=OTHERS.values())
def test_other_files(tmp_path: Path, raw: bytes, said: str):
    (tmp_path / "a.pt").write_bytes(raw)
    with pytest.raises(CheckpointError, match=re.escape(f"{tmp_path / 'a.pt'}: {said}")):
        TorchFile(tmp_path / "a.pt")


def test_files_of_other_formats(tmp_path: Path):
    save_file({"a": torch.ones(3)}, tmp_path / "a.pt")
    with tarfile.open(tmp_path / "b.pt", "w") as archive:
        archive.add(tmp_path / "a.pt", "storages")
    for name, said in (("a.pt", "is a safetensors file; rename it"), ("b.pt", "is a tar file, as torch's first")):
        with pytest.raises(CheckpointError, match=said):
            TorchFile(tmp_path / name)


def test_damage_before_1_6(tmp_path: Path):
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    sound = (tmp_path / "a.pt").read_bytes()
    little = sound.index(b"\x88", sound.index(b"little_endian"))
    version, size = sound.index(b"M\xe9\x03") + 1, len(sound) - 20
    for at, byte, said in (
        (little, 0x89, "or from a big-endian machine"),
        (version, 0xEA, "is of another version of torch's old format"),
        (size, 4, "a storage's size is not what its tensors say"),
    ):
        (tmp_path / "a.pt").write_bytes(sound[:at] + bytes([byte]) + sound[at + 1 :])
        with pytest.raises(CheckpointError, match=said):
            TorchFile(tmp_path / "a.pt")


def test_a_file_that_is_cut_short_while_it_is_read(tmp_path: Path):
    torch.save({"a": torch.ones(100_000)}, tmp_path / "a.pt")
    file = TorchFile(tmp_path / "a.pt")
    os.truncate(tmp_path / "a.pt", 10_000)
    with pytest.raises(CheckpointError, match="was cut short while it was read"):
        file.read_into("a", 0, memoryview(bytearray(400_000)))
