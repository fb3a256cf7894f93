"""Hostile pickles: each is refused at once, in one line, at little cost, and nothing that it names is run."""

import pickle
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from handmade_pickles import (
    FOUR,
    LEGACY,
    ONE,
    START,
    STOP,
    call,
    holding,
    legacy,
    module,
    name,
    number,
    some,
    storage,
    tensor,
    text,
    zipped,
)

from clipfuse.checkpoints.torch_file import TorchFile
from clipfuse.checkpoints.unpickle import Window, unpickle
from clipfuse.errors import CheckpointError

MARKED = "touch SENTINEL"
NAMED = {
    "os.system": call("os.system", text(MARKED)),
    "posix.system": call("posix.system", text(MARKED)),
    "nt.system": call("nt.system", text(MARKED)),
    "posixpath.os.system": text("posixpath") + text("os.system") + b"\x93" + some(text(MARKED)) + b"R",
    "subprocess.Popen": call("subprocess.Popen", text(MARKED), *[number(0)] * 5, b"\x88", b"\x88"),
    "builtins.eval": call("builtins.eval", text("open('SENTINEL', 'w')")),
    "builtins.exec": call("__builtin__.exec", text("open('SENTINEL', 'w')")),
    "builtins.open": call("builtins.open", text("SENTINEL"), text("w")),
    "builtins.getattr": call("builtins.getattr", name("collections.OrderedDict"), text("__class__")),
    "builtins.__import__": call("builtins.__import__", text("os")),
    "builtins.type": call("builtins.type", text("X"), b")", b"}"),
    "importlib.import_module": call("importlib.import_module", text("os")),
    "webbrowser.open": call("webbrowser.open", text("SENTINEL")),
    "pickle.loads": call("pickle.loads", b"C\x01."),
    "ctypes.CDLL": call("ctypes.CDLL", text("libc.so.6")),
    "shutil.rmtree": call("shutil.rmtree", text("SENTINEL")),
    "os.popen": call("functools.partial", name("os.popen"), text(MARKED)),
    "code.InteractiveInterpreter": name("code.InteractiveInterpreter") + b")\x81",
    "runpy.run_path": name("any.Net") + b")\x81" + name("runpy.run_path") + b"b",
    "torch.hub.load": call("torch.hub.load", text("owner/repository"), text("model")),
    "torch.load": call("torch.load", text("SENTINEL")),
    "torch.jit.load": call("torch.jit.load", text("SENTINEL")),
    "torch.serialization.load": call("torch.serialization.load", text("SENTINEL")),
    "torch.utils.cpp_extension.load_inline": call("torch.utils.cpp_extension.load_inline", text("x"), text("y")),
    "torch.storage._load_from_bytes": call("torch.storage._load_from_bytes", b"C\x01."),
    "numpy.load": call("numpy.load", text("SENTINEL")),
    "any.module.run": call("any.module.run", text(MARKED)),
    "os.remove": b"(" + name("os.remove") + text("SENTINEL") + b"o",
    "os.execv": some(text("storage"), name("os.execv"), text("0"), text("cpu"), number(1)) + b"Q",
}
"""What is asked for → a pickle that asks for it."""

ODD = {
    "call of a result": call("any.Net") + b")R" + b")R",
    "call of a text": text("os.system") + some(text(MARKED)) + b"R",
    "call without a tuple": name("any.Net") + b"]R",
    "a name that is none": call("os\\system; any.Net"),
    "a name without an end": b"c" + b"x" * 100_000,
    "a name made of numbers": number(1) + number(2) + b"\x93",
    "protocol 0": b"ios\nsystem\n(S'touch SENTINEL'\ntR",
    "extension": b"\x82\x01",
    "state for a tensor": tensor(FOUR, ONE) + b"}b",
    "no tensor in a parameter": call("torch._utils._rebuild_parameter", number(1), b"\x88", b"N"),
    "a subclass that rebuilds itself": call(
        "torch._tensor._rebuild_from_type_v2", name("any.Net"), name("torch.Tensor"), b")", b"N"
    ),
    "state dict with odd keys": b"}" + some(number(1)) + b"Ns",
    "half an item": b"}(Nu",
    "appends to a number": number(1) + b"Na",
    "sets items of a list": b"]NNs",
    "an empty stack": b"",
    "too few on the stack": b"N\x87",
    "no mark": b"t",
    "an unknown memo": b"h\x05",
    "not UTF-8": b"X\x02\0\0\0\xff\xfe",
    "negative size": holding(tensor(some(number(-4)), ONE)),
    "negative stride": holding(tensor(FOUR, some(number(-1)), number(3))),
    "negative offset": holding(tensor(FOUR, ONE, number(-1))),
    "size of truth": holding(tensor(some(b"\x88"), ONE)),
    "size of a fraction": holding(tensor(some(b"G" + struct.pack(">d", 4.0)), ONE)),
    "size is a text": holding(tensor(text("4"), ONE)),
    "size of 2^64": holding(tensor(some(number(0), number(1 << 64)), some(number(1), number(1)))),
    "sizes that overflow": holding(tensor(some(number(0), *[number(1 << 40)] * 3), some(*[number(1)] * 4))),
    "stride of 2^63": holding(tensor(some(number(2)), some(number(1 << 63)))),
    "more strides than sizes": holding(tensor(FOUR, some(number(1), number(1)))),
    "a hundred dimensions": holding(tensor(some(*[number(1)] * 100), some(*[number(1)] * 100))),
    "beyond its storage": holding(tensor(some(number(5)), ONE)),
    "offset beyond its storage": holding(tensor(FOUR, ONE, number(1))),
    "stride beyond its storage": holding(tensor(some(number(2)), FOUR)),
    "the last value of none": holding(tensor(b")", b")", number(4))),
    "no storage": holding(tensor(FOUR, ONE, number(0), b"N")),
    "another's storage": holding(tensor(FOUR, ONE, number(0), name("any.Net") + b")\x81")),
    "a storage of terabytes": holding(tensor(some(number(1 << 40)), ONE, number(0), storage(1 << 40))),
    "a storage of no size": holding(tensor(FOUR, ONE, number(0), storage(-1))),
    "a storage of no type": holding(tensor(FOUR, ONE, number(0), storage(4, "any.FloatStorage"))),
    "a storage of no key": holding(tensor(FOUR, ONE, number(0), storage(4, "torch.FloatStorage", number(0)))),
    "a storage elsewhere": holding(
        tensor(FOUR, ONE, number(0), storage(4, "torch.FloatStorage", text("../../etc/passwd")))
    ),
    "a view of a storage": holding(tensor(FOUR, ONE, number(0), storage(4, "torch.FloatStorage", text("0"), ONE))),
    "a storage of two sizes": storage(4) + b"0" + storage(5),
    "a quantized tensor": holding(call("torch._utils._rebuild_qtensor", storage(4, "torch.QInt8Storage"), number(0))),
    "a persistent id of text": text("storage") + b"Q",
    "a module without tables": name("any.Net") + b")\x81}" + text("weight") + tensor(FOUR, ONE) + b"sb",
    "a parameter that is a text": module(own=holding(text("x"))),
    "a module in itself": module(text("x"), b"h\0", text("y"), b"h\0", before=b"q\0"),
}

COSTLY = {
    "memo of 2^32": b"Nr\xff\xff\xff\xff",
    "bytes of 4 GB": b"B\xff\xff\xff\xff",
    "text of 4 GB": b"X\xff\xff\xff\xff",
    "bytes of 2^62": b"\x8e" + struct.pack("<Q", 1 << 62),
    "text of 2^62": b"\x8d" + struct.pack("<Q", 1 << 62),
    "byte array of 2^40": b"\x96" + struct.pack("<Q", 1 << 40),
    "frame of 2^62": b"\x95" + struct.pack("<Q", 1 << 62),
    "number of 2 GB": b"\x8b\xff\xff\xff\x7f",
    "lists in lists": b"]" * 100_000 + b"a" * 99_999,
    "tuples in tuples": b")" + b"\x85" * 100_000,
    "tuples in tuples as a key": b"}" + b")" + b"\x85" * 100_000 + b"Ns",
    "tuples that double": b")" + b"q\0h\0\x86" * 60,
    "a shape that doubles": b"](K\x01q\0" + b"h\0h\0\x86q\0" * 60 + b"e0" + holding(tensor(b"h\0", b"h\0")),
    "a dtype that doubles": b"]q\0"
    + b"]q\1(h\0h\0eq\0" * 60
    + b"0" * 60
    + call("torch._utils._rebuild_tensor_v3", storage(4), number(0), FOUR, ONE, b"\x89", b"N", b"h\0"),
    "marks": b"(" * 5_000_000,
    "long calls": b"(" + b"N" * 10_000 + b"tq\0" + (name("torch.Size") + b"h\0R0") * 10_000,
    "dictionaries": b"}" * 5_000_000,
    "numbers that collide": b"}(" + b"".join(number(k * ((1 << 61) - 1)) + b"N" for k in range(20_000)) + b"u",
    "modules that double": module() + b"q\0" + (module(text("a"), b"h\0", text("b"), b"h\0") + b"q\0") * 60,
    "modules in modules": module() + b"q\0" + (module(text("a"), b"h\0") + b"q\0") * 5000,
    "one table in all modules": b"}q\0(" + b"".join(text(f"m{i}") + b"N" for i in range(5000)) + b"u0"
    + module(*(text(f"m{i}") + module(own=b"h\0") for i in range(1000))),
    "long names": module() + b"q\0" + (module(text("n" * 150), b"h\0") + b"q\0") * 100,
}  # fmt: skip


def refusal(path: Path) -> str:
    began = time.process_time()
    with pytest.raises(CheckpointError) as caught:
        TorchFile(path)
    assert time.process_time() - began < 1
    said = str(caught.value)
    assert said.startswith(f"{path}: ")
    assert said.isprintable()
    assert len(said) < 1000
    return said


@pytest.mark.parametrize("write", [legacy, zipped])
@pytest.mark.parametrize("asked", NAMED)
def test_what_is_asked_for_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, write: Callable):
    monkeypatch.chdir(tmp_path)
    write(NAMED[asked], Path("a.pt"))
    assert asked in refusal(Path("a.pt"))
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"], "what SENTINEL stands for was made"


@pytest.mark.parametrize("asked", ["os.system", "builtins.eval", "builtins.open", "os.popen"])
def test_the_attacks_are_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str):
    """A reader that takes everything runs them."""
    monkeypatch.chdir(tmp_path)
    made = pickle.loads(START + NAMED[asked] + STOP)  # noqa: S301
    if asked == "os.popen":
        made().close()
    elif hasattr(made, "close"):
        made.close()
    assert Path("SENTINEL").exists()


@pytest.mark.parametrize("write", [legacy, zipped])
@pytest.mark.parametrize("raw", ODD.values(), ids=ODD)
def test_odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: bytes, write: Callable):
    monkeypatch.chdir(tmp_path)
    write(raw, Path("a.pt"))
    refusal(Path("a.pt"))
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize("write", [legacy, zipped])
@pytest.mark.parametrize("raw", COSTLY.values(), ids=COSTLY)
def test_costly(tmp_path: Path, raw: bytes, write: Callable):
    write(raw, tmp_path / "a.pt")
    refusal(tmp_path / "a.pt")


@pytest.mark.parametrize("claim", [case for case in COSTLY if " of " in case])
def test_nothing_is_allocated_for_what_is_claimed(tmp_path: Path, claim: str):
    zipped(COSTLY[claim], tmp_path / "a.pt")
    tracemalloc.start()
    try:
        refusal(tmp_path / "a.pt")
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("write", [legacy, zipped])
def test_what_the_odd_ones_are_made_from_is_sound(tmp_path: Path, write: Callable):
    """Else they would be refused for other reasons."""
    for raw in (holding(tensor(FOUR, ONE)), module(own=holding(tensor(FOUR, ONE)))):
        write(raw, tmp_path / "a.pt")
        assert TorchFile(tmp_path / "a.pt").read("weight").tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_values_are_python_s(protocol: int):
    shared = [1, "ä" * 300, None, True, False, -5, 1 << 40, 1 << 20, 0.5, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)]
    value = {"a": shared, "b": {"c": shared, 3: {}}, "d": [[]]}
    raw = pickle.dumps(value, protocol)
    found = unpickle(Window(raw, 0, len(raw)), Path("a")).value
    assert found == value
    assert found["a"] is found["b"]["c"]


def test_cut_anywhere(tmp_path: Path):
    raw = holding(tensor(FOUR, ONE))
    for length in range(len(raw)):
        (tmp_path / "a.pt").write_bytes(LEGACY + START + raw[:length])
        refusal(tmp_path / "a.pt")
