"""Pickles that ask for what no model needs, that contradict themselves, or that claim or cost far too much."""

import struct

from handmade_pickles import FOUR, ONE, call, holding, module, name, number, some, storage, tensor, text

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

ODD_BY_ANSWER: dict[str, dict[str, bytes]] = {
    "calls what is no class": {
        "call of a result": call("any.Net") + b")R" + b")R",
        "call of a text": text("os.system") + some(text(MARKED)) + b"R",
        "call without a tuple": name("any.Net") + b"]R",
    },
    "makes something of what is no class": {"a text": text("x") + b")\x81"},
    "asks for 'os\\\\system; any.Net', which is no name": {"a command": call("os\\system; any.Net")},
    "asks for what is no name": {"two numbers": number(1) + number(2) + b"\x93"},
    "has a name without an end": {"a long name": b"c" + b"x" * 100_000},
    "which torch does not write": {
        "protocol 0": b"ios\nsystem\n(S'touch SENTINEL'\ntR",
        "extension": b"\x82\x01",
    },
    "gives state to what has none": {"a tensor": tensor(FOUR, ONE) + b"}b"},
    "appends to what is no list": {"a number": number(1) + b"Na"},
    "sets items of what is no dictionary": {"a list": b"]NNs"},
    "keys that are not names": {"a tuple": b"}" + some(number(1)) + b"Ns", "a list": b"}]Ns"},
    "its pickle is damaged": {
        "half an item": b"}(Nu",
        "an empty stack": b"",
        "too few on the stack": b"N\x87",
        "no mark": b"t",
        "an unknown memo": b"h\x05",
        "not UTF-8": b"X\x02\0\0\0\xff\xfe",
        "too many arguments": call("torch._utils._rebuild_tensor_v2", *[number(0)] * 9),
    },
    "rebuilds something else than a tensor": {
        "any class": call("torch._tensor._rebuild_from_type_v2", name("any.Net"), name("torch.Tensor"), b")", b"N"),
    },
    "has a parameter that is no tensor": {
        "a number": call("torch._utils._rebuild_parameter", number(1), b"\x88", b"N"),
    },
    "whose offset, shape or strides are no counts, or too large": {
        "negative size": holding(tensor(some(number(-4)), ONE)),
        "negative stride": holding(tensor(FOUR, some(number(-1)), number(3))),
        "negative offset": holding(tensor(FOUR, ONE, number(-1))),
        "size of truth": holding(tensor(some(b"\x88"), ONE)),
        "size of a fraction": holding(tensor(some(b"G" + struct.pack(">d", 4.0)), ONE)),
        "size of 2^64": holding(tensor(some(number(0), number(1 << 64)), some(number(1), number(1)))),
        "sizes that overflow": holding(tensor(some(number(0), *[number(1 << 40)] * 3), some(*[number(1)] * 4))),
        "stride of 2^63": holding(tensor(some(number(2)), some(number(1 << 63)))),
    },
    "1 dimensions and 2 strides": {"two strides": holding(tensor(FOUR, some(number(1), number(1))))},
    "of 100 dimensions": {"a hundred": holding(tensor(some(*[number(1)] * 100), some(*[number(1)] * 100)))},
    "reaches beyond its storage of 16 bytes": {
        "size": holding(tensor(some(number(5)), ONE)),
        "offset": holding(tensor(FOUR, ONE, number(1))),
        "stride": holding(tensor(some(number(2)), FOUR)),
        "offset of one value": holding(tensor(b")", b")", number(4))),
    },
    "has a tensor without storage, shape or strides": {
        "size is a text": holding(tensor(text("4"), ONE)),
        "no storage": holding(tensor(FOUR, ONE, number(0), b"N")),
        "another's storage": holding(tensor(FOUR, ONE, number(0), name("any.Net") + b")\x81")),
    },
    "should hold 4,398,046,511,104 bytes": {"terabytes": holding(tensor(FOUR, ONE, number(0), storage(1 << 40)))},
    "has a storage without key or size, or a view of a storage": {
        "negative size": storage(-1),
        "size is a text": some(text("storage"), name("torch.FloatStorage"), text("0"), text("cpu"), text("4")) + b"Q",
        "key is a number": storage(4, "torch.FloatStorage", number(0)),
        "view": storage(4, "torch.FloatStorage", text("0"), ONE),
    },
    "refers to any.FloatStorage, which is no known type of storage": {"another's": storage(4, "any.FloatStorage")},
    "refers to something else than storages": {"a text": text("storage") + b"Q"},
    "gives storage '0' two sizes": {"two": storage(4) + b"0" + storage(5)},
    "'data/../../etc/passwd' should hold 16 bytes and is missing": {
        "elsewhere": holding(tensor(FOUR, ONE, number(0), storage(4, "torch.FloatStorage", text("../../etc/passwd")))),
    },
    "'weight' is quantized; plain tensors are read": {
        "quantized": holding(call("torch._utils._rebuild_qtensor", storage(4, "torch.QInt8Storage"), number(0))),
    },
    "what it holds is an any.Net, which is no module": {"no tables": name("any.Net") + b")\x81}b"},
    "'weight' is a str; plain tensors are read": {"a text as a parameter": module(own=holding(text("x")))},
    "is no name of a tensor: 500 printable": {"a ring": module(text("x"), b"h\0", text("y"), b"h\0", before=b"q\0")},
}
"""What is said → pickles of which it is said."""

COSTLY_BY_ANSWER: dict[str, dict[str, bytes]] = {
    "remembers number 4,294,967,295 after 0": {"memo of 2^32": b"Nr\xff\xff\xff\xff"},
    "is cut short, or takes more than 64 MiB": {
        "bytes of 4 GB": b"B\xff\xff\xff\xff",
        "text of 4 GB": b"X\xff\xff\xff\xff",
    },
    "which torch does not write": {
        "bytes of 2^62": b"\x8e" + struct.pack("<Q", 1 << 62),
        "byte array of 2^40": b"\x96" + struct.pack("<Q", 1 << 40),
        "number of 2 GB": b"\x8b\xff\xff\xff\x7f",
    },
    "its pickle is damaged": {"frame of 2^62": b"\x95" + struct.pack("<Q", 1 << 62)},
    "holds a list": {"lists in lists": b"]" * 100_000 + b"a" * 99_999},
    "holds a tuple": {
        "tuples in tuples": b")" + b"\x85" * 100_000,
        "tuples that double": b")" + b"q\0h\0\x86" * 60,
        "long calls": b"(" + b"N" * 50_000 + b"tq\0" + (name("torch.Size") + b"h\0R0") * 20_000,
    },
    "keys that are not names": {
        "tuples in tuples as a key": b"}" + b")" + b"\x85" * 100_000 + b"Ns",
        "numbers that collide": b"}(" + b"".join(number(k * ((1 << 61) - 1)) + b"N" for k in range(20_000)) + b"u",
    },
    "are no counts": {
        "a shape that doubles": b")q\0" + b"h\0h\0\x86q\0" * 60 + b"0" * 60 + holding(tensor(b"h\0", b"h\0")),
    },
    "holds a tensor": {
        "a dtype that doubles": b")q\0" + b"h\0h\0\x86q\0" * 60
        + call("torch._utils._rebuild_tensor_v3", storage(4), number(0), FOUR, ONE, b"\x89", b"N", b"h\0"),
    },
    "which is no name": {
        "names of megabytes": text("a" * 5_000_000) + b"q\0h\0\x93" + b"h\0h\0\x93" * 200,
    },
    "is nested more than 1000 deep": {"marks": b"(" * 5_000_000},
    "takes more than 1,000,000 steps": {"dictionaries": b"}" * 5_000_000},
    "that hold themselves": {
        "modules that double": module() + b"q\0" + (module(text("a"), b"h\0", text("b"), b"h\0") + b"q\0") * 60,
        "one table in all modules": b"}q\0(" + b"".join(text(f"m{i}") + b"N" for i in range(20_000)) + b"u0"
        + module(*(text(f"m{i}") + module(own=b"h\0") for i in range(3000))),
    },
    "is no name of a tensor: 500 printable": {
        "modules in modules": module() + b"q\0" + (module(text("a"), b"h\0") + b"q\0") * 5000,
        "long names": module() + b"q\0" + (module(text("n" * 150), b"h\0") + b"q\0") * 100,
    },
}  # fmt: skip


def flat(table: dict[str, dict[str, bytes]]) -> dict[str, tuple[bytes, str]]:
    return {f"{case} ({said})": (raw, said) for said, cases in table.items() for case, raw in cases.items()}


ODD, COSTLY = flat(ODD_BY_ANSWER), flat(COSTLY_BY_ANSWER)
