"""Pickles put together opcode by opcode, sound or not, and the two formats of torch that hold them."""

import pickle
import struct
import zipfile
from pathlib import Path

START, STOP = b"\x80\x02", b"."
LEGACY = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))


def name(qualified: str) -> bytes:
    module, _, last = qualified.rpartition(".")
    return f"c{module}\n{last}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def some(*items: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(items) + b"t"


def call(qualified: str, *arguments: bytes) -> bytes:
    return name(qualified) + some(*arguments) + b"R"


def storage(numel: int, kind: str = "torch.FloatStorage", key: bytes = text("0"), *more: bytes) -> bytes:
    return some(text("storage"), name(kind), key, text("cpu"), number(numel), *more) + b"Q"


def tensor(shape: bytes, stride: bytes, offset: bytes = number(0), values: bytes = storage(4)) -> bytes:
    hooks = call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v2", values, offset, shape, stride, b"\x89", hooks)


def holding(value: bytes) -> bytes:
    """A state dict of one entry."""
    return b"}" + text("weight") + value + b"s"


def module(*children: bytes, before: bytes = b"", own: bytes = b"}") -> bytes:
    """A module of a class that is not there; children are name, module, name, module, …"""
    tables = [text("_parameters"), own, text("_buffers"), b"}", text("_modules"), b"}(", *children, b"u"]
    return name("any.Net") + b")\x81" + before + b"}(" + b"".join(tables) + b"ub"


FOUR = some(number(4))
ONE = some(number(1))
"""Shape and strides of the tensor that is sound."""


def legacy(raw: bytes, path: Path) -> None:
    keys = ["0"] if b"Storage\n" in raw else []
    path.write_bytes(LEGACY + START + raw + STOP + pickle.dumps(keys, 2) + struct.pack("<q", 4) + bytes(16))


def zipped(raw: bytes, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", START + raw + STOP)
        archive.writestr("archive/data/0", bytes(16))
