"""Mutants of sound files by hypothesis: of their bytes, their JSON, their pickles' opcodes and their zips' directories."""

import json
import pickle
import pickletools
import struct
from collections.abc import Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any

from handmade_pickles import FOUR, LEGACY, ONE, START, STOP, call, holding, module, name, number, some, storage, tensor
from handmade_pickles import text as words
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

NUMBERS = (0, 1, -1, 2, 3, 7, 8, 255, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 48, 1 << 62, (1 << 63) - 1, 1 << 64, 10**30)
TEXTS = (
    "",
    "a",
    "a\nb",
    "\0",
    "\x1b[31m",
    "\ud800",
    "../../x",
    "/etc/passwd",
    "..",
    "n" * 3000,
    "é",
    "__metadata__",
    "F32",
)
ODD: tuple[Any, ...] = (
    *NUMBERS, *(-n for n in NUMBERS[3:]), *TEXTS, 0.5, 1e308, float("nan"), float("inf"), float("-inf"), True, False, None,
    [], {}, [[]], [0], [0, 0], [1, 2, 3], [1 << 62, 0, 1 << 62], [0] * 100, [1] * 100, [None], ["a"], {"a": 1}, {"": {}},
)  # fmt: skip
OPCODES = (
    *(bytes([code]) for code in range(256)),
    *(number(value) for value in NUMBERS),
    *(words(value) for value in TEXTS if value.isascii()),
    *(name(called) for called in ("os.system", "torch.Size", "collections.OrderedDict", "torch.float32", "any.Net")),
    *(name(f"torch._utils._rebuild_{kind}") for kind in ("tensor_v2", "tensor_v3", "parameter", "sparse_tensor")),
    *(name(f"torch.{kind}") for kind in ("FloatStorage", "BoolStorage", "ComplexDoubleStorage", "UntypedStorage")),
    *(
        FOUR,
        ONE,
        storage(4),
        storage(5),
        storage(0),
        storage(1, key=words("1")),
        tensor(FOUR, ONE),
        b"]",
        b"}",
        b")\x81",
    ),
    *(call("os.system", words("touch SENTINEL")), module(), holding(tensor(some(), some()))),
    *(b"q" + bytes([at]) for at in range(4)),
    *(b"h" + bytes([at]) for at in range(4)),
)
"""What an opcode is replaced by, or stands before it."""

KEYS = (["0", "1"], ["1", "0"], ["1"], [], ["0", "0"], "0", {"0": 1}, [0], [["0"]])
"""What the old format's list of storages may be instead."""
RARE = 3
"""A draw that is no more frequent than others, as 0 and 1 are."""

DIRECTORY = {"<H": (4, 6, 8, 10, 28, 30, 32, 34, 36), "<I": (12, 14, 16, 20, 24, 38, 42)}
"""Where in a zip's central header its fields are."""
END = {"<H": (4, 6, 8, 10, 20), "<I": (12, 16)}
"""The same in the record at its end."""


@st.composite
def spoiled_bytes(draw: DrawFn, sound: bytes) -> bytes:
    """One to three flips, cuts, splices and numbers laid over."""
    raw = sound
    for _ in range(draw(st.integers(1, 3))):
        start, stop = sorted(draw(st.integers(0, len(raw))) for _ in range(2))
        kind = draw(st.sampled_from(("flip", "cut", "remove", "repeat", "insert", "number")))
        if kind == "flip":
            raw = raw[:start] + draw(st.binary(min_size=1, max_size=1)) + raw[start + 1 :]
        elif kind == "cut":
            raw = raw[:stop]
        elif kind == "remove":
            raw = raw[:start] + raw[stop:]
        elif kind == "repeat":
            raw = raw[:stop] + raw[start:]
        elif kind == "insert":
            raw = raw[:start] + draw(st.binary(max_size=9)) + raw[start:]
        else:
            layout = draw(st.sampled_from(("<H", "<I", "<Q")))
            raw = over(raw, start, layout, draw(st.sampled_from(NUMBERS)))
    return raw


def over(raw: bytes, at: int, layout: str, value: int) -> bytes:
    """A number laid over the bytes from `at` on."""
    size = struct.calcsize(layout)
    return raw[:at] + (value % (1 << 8 * size)).to_bytes(size, "little") + raw[at + size :]


def places(tree: Any) -> list[tuple[Any, ...]]:
    """Ways to all values inside a tree."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [way for key, value in inside for way in ((key,), *((key, *rest) for rest in places(value)))]


@st.composite
def spoiled_tree(draw: DrawFn, sound: str) -> Any:
    """A tree of JSON with one or two values odd, absent, moved or renamed."""
    tree = json.loads(sound)
    for _ in range(draw(st.integers(1, 2))):
        ways = places(tree)
        if not ways:
            return deepcopy(draw(st.sampled_from(ODD)))
        *way, key = draw(st.sampled_from(ways))
        parent = tree
        for step in way:
            parent = parent[step]
        kind = draw(st.sampled_from(("odd", "odd", "absent", "renamed", "other", "nested")))
        if kind == "odd":
            parent[key] = deepcopy(draw(st.sampled_from(ODD)))
        elif kind == "absent":
            del parent[key]
        elif kind == "renamed" and isinstance(parent, dict):
            parent[draw(st.sampled_from(TEXTS))] = parent.pop(key)
        elif kind == "other":
            parent[key] = deepcopy(draw(st.sampled_from([*parent.values()] if isinstance(parent, dict) else parent)))
        else:
            parent[key] = [parent[key]]
    return tree if draw(st.integers(0, 40)) != RARE else draw(st.sampled_from(ODD))


@st.composite
def spoiled_json(draw: DrawFn, sound: bytes) -> bytes:
    """The text of a tree that is spoiled, once in a while with a key twice."""
    raw = json.dumps(draw(spoiled_tree(sound.decode()))).encode()
    if draw(st.integers(0, 9)) == RARE and raw.startswith(b'{"'):
        return raw[:-1] + b", " + raw[1:]
    return raw


@st.composite
def spoiled_header(draw: DrawFn, sound: bytes) -> bytes:
    """A safetensors file with a spoiled header; its length is right but for once in a while."""
    length = int.from_bytes(sound[:8], "little")
    header = draw(spoiled_json(sound[8 : 8 + length]))
    told = len(header) + draw(st.sampled_from((0,) * 9 + (1, -1, 1 << 40)))
    return (told % (1 << 64)).to_bytes(8, "little") + header + sound[8 + length :]


@st.composite
def spoiled_opcodes(draw: DrawFn, sound: bytes) -> bytes:
    """A pickle with one to four opcodes replaced, absent, doubled, swapped, or with others before them."""
    starts = [at for _, _, at in pickletools.genops(sound)] + [len(sound)]
    codes = [sound[start:stop] for start, stop in pairwise(starts)]
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(codes) - 1))
        kind = draw(st.sampled_from(("replaced", "before", "absent", "doubled", "swapped", "argument")))
        if kind in ("replaced", "before"):
            codes[at : at + (kind == "replaced")] = [draw(st.sampled_from(OPCODES))]
        elif kind == "absent":
            codes[at : at + draw(st.integers(1, 3))] = []
        elif kind == "doubled":
            codes[at:at] = codes[at : at + draw(st.integers(1, 5))] * draw(st.sampled_from((1, 2, 50)))
        elif kind == "swapped":
            other = draw(st.integers(0, len(codes) - 1))
            codes[at], codes[other] = codes[other], codes[at]
        elif len(codes[at]) > 1:
            codes[at] = codes[at][:1] + draw(st.binary(min_size=len(codes[at]) - 1, max_size=len(codes[at]) - 1))
        if not codes:
            return b""
    return b"".join(codes)


def stored_zip(found: Sequence[tuple[str, bytes]]) -> bytes:
    """A zip of entries that are stored as they are, with right lengths and offsets."""
    body, directory = b"", b""
    for called, raw in found:
        path = called.encode()
        fields = (20, 0, 0, 0, 0, 0, len(raw), len(raw), len(path))
        directory += b"PK\1\2" + struct.pack("<6H3I5H2I", 20, *fields, 0, 0, 0, 0, 0, len(body)) + path
        body += b"PK\3\4" + struct.pack("<5H3I2H", *fields, 0) + path + raw
    count = len(found)
    return body + directory + b"PK\5\6" + struct.pack("<4H2IH", 0, 0, count, count, len(directory), len(body), 0)


@st.composite
def spoiled_zip(draw: DrawFn, pickled: bytes) -> bytes:
    """torch's zip around a pickle that is spoiled or not, with entries moved, renamed or doubled, or fields odd."""
    whole = draw(st.booleans())
    raw = pickled if whole else draw(spoiled_opcodes(pickled))
    entries = [("a/data.pkl", raw), ("a/byteorder", b"little"), ("a/data/0", bytes(16)), ("a/data/1", bytes(8))]
    if whole and draw(st.booleans()):
        at = draw(st.integers(0, 3))
        called = draw(st.sampled_from(("a/data/0", "a/data.pkl", "b/data.pkl", "../x", "/x", "a/data/0\n", "x" * 300)))
        entries[at : at + draw(st.integers(0, 1))] = [(called, draw(st.sampled_from(entries))[1])]
    file = stored_zip(draw(st.permutations(entries)) if whole else entries)
    for _ in range(draw(st.integers(0, 2)) if whole else 0):
        magic, fields = draw(st.sampled_from(((b"PK\1\2", DIRECTORY), (b"PK\5\6", END))))
        found = [at for at in range(len(file)) if file.startswith(magic, at)]
        layout = draw(st.sampled_from(("<H", "<I")))
        at = draw(st.sampled_from(found)) + draw(st.sampled_from(fields[layout]))
        file = over(file, at, layout, draw(st.sampled_from((*NUMBERS, len(file), *range(30, 50)))))
    return file


@st.composite
def spoiled_legacy(draw: DrawFn, pickled: bytes) -> bytes:
    """torch's old format around a spoiled pickle; the other four pickles too, once in a while."""
    head = LEGACY if draw(st.integers(0, 5)) != RARE else draw(spoiled_bytes(LEGACY))
    raw = draw(spoiled_opcodes(pickled)) if draw(st.integers(0, 5)) != RARE else pickled
    keys = ["0"] if draw(st.integers(0, 5)) != RARE else draw(st.sampled_from(KEYS))
    values = b"".join(struct.pack("<q", size) + bytes(4 * size) for size in (4, 1)[: len(keys)])
    return head + raw + pickle.dumps(keys, 2) + values


PICKLES = tuple(
    START + raw + STOP
    for raw in (
        holding(tensor(FOUR, ONE)),
        module(words("a"), module(own=holding(tensor(some(number(2), number(2)), some(number(1), number(2)))))),
        b"}"
        + words("state_dict")
        + holding(call("torch._utils._rebuild_parameter", tensor(FOUR, ONE), b"\x88", b"N"))
        + b"s",
    )
)


def spoiled_file(sounds: Sequence[bytes], *kinds: Any) -> SearchStrategy[bytes]:
    """Mutants of any of some sound files, of any kind or of their bytes."""
    all_kinds = (*kinds, *kinds, spoiled_bytes)  # half of the mutants of bytes end in the first check
    return st.sampled_from(sounds).flatmap(lambda sound: st.one_of(*(kind(sound) for kind in all_kinds)))
