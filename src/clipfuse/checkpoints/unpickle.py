"""torch's pickles, read without importing or calling anything that they name, in bounded time and memory.

A small machine of our own for the opcodes that torch writes: Python's unpickler in C allocates by numbers that the
file chooses. What names and calls become is said in stand_ins.py.
"""

import mmap
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from clipfuse.checkpoints.stand_ins import Global, Instance, call, find, is_plumbing, make, refer
from clipfuse.checkpoints.stored_tensor import Storage
from clipfuse.errors import CheckpointError

MAX_BYTES = 64 << 20
MAX_READS = 1_000_000
"""An opcode takes one to three reads; the pickle of a whole ViT-L/14 takes some 80,000."""
MAX_DEPTH = 1000
MAX_ODD_KEYS = 5000
"""Numbers can be chosen such that they collide in a dictionary; strings cannot."""


class Window:
    """A mapped file's bytes from `start` to `end`, read forwards; no more of them than a pickle may take."""

    def __init__(self, data: mmap.mmap | bytes, start: int, end: int):
        self.data, self.at = data, start
        self.end = min(end, start + MAX_BYTES)
        self.reads = 0

    def read(self, count: int) -> bytes:
        self.reads += 1
        self.at += count
        if self.at > self.end:
            raise UnpicklingError(f"is cut short, or takes more than {MAX_BYTES >> 20} MiB")
        if self.reads > MAX_READS:
            raise UnpicklingError(f"takes more than {MAX_READS:,} steps")
        return self.data[self.at - count : self.at]

    def line(self) -> str:
        stop = self.data.find(b"\n", self.at, self.end)
        if stop < 0:
            raise UnpicklingError("has a name without an end")
        return self.read(stop + 1 - self.at)[:-1].decode()


@dataclass(frozen=True)
class Pickled:
    """What a pickle holds, the names in it beside torch's plumbing, and the storages by key."""

    value: Any
    names: frozenset[str]
    storages: dict[str, Storage]


def unpickle(window: Window, where: Path) -> Pickled:
    """The window's next pickle.

    Raises:
        CheckpointError: it is damaged, too large, or asks for what no model needs.
    """
    machine = Machine(window)
    try:
        value = machine.run()
    except UnpicklingError as error:
        raise CheckpointError(f"{where}: its pickle {error}") from None
    except (LookupError, ValueError, TypeError, struct.error):
        raise CheckpointError(f"{where}: its pickle is damaged") from None
    return Pickled(value, frozenset(machine.names), machine.storages)


class Machine:
    """A stack, a memo, and what was named on the way."""

    def __init__(self, window: Window):
        self.window, self.read = window, window.read
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: list[Any] = []
        self.names: set[str] = set()
        self.storages: dict[str, Storage] = {}
        self.odd_keys = 0

    def run(self) -> Any:
        while (code := self.read(1)) != pickle.STOP:
            if code not in OPCODES:
                raise UnpicklingError(f"has opcode {code!r}, which torch does not write")
            OPCODES[code](self)
        return self.stack.pop()

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.read(struct.calcsize(layout)))[0]

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def mark(self) -> None:
        if len(self.outer) == MAX_DEPTH:
            raise UnpicklingError(f"is nested more than {MAX_DEPTH} deep")
        self.outer.append(self.stack)
        self.stack = []

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def last(self, count: int) -> list[Any]:
        return [self.stack.pop() for _ in range(count)][::-1]

    def remember(self, at: int) -> None:
        """Picklers number what they remember in turn, so that a list will do."""
        if at > len(self.memo):
            raise UnpicklingError(f"remembers number {at:,} after {len(self.memo):,}")
        self.memo[at : at + 1] = [self.stack[-1]]

    def name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise UnpicklingError("asks for what is no name")
        found = find(module, name)
        if type(found) is Global and not is_plumbing(found.name):
            self.names.add(found.name)
        self.push(found)

    def refer(self) -> None:
        found = refer(self.stack.pop())
        if type(found) is Storage and self.storages.setdefault(found.key, found).nbytes != found.nbytes:
            raise UnpicklingError(f"gives storage {found.key[:20]!r} two sizes")
        self.push(found)

    def build(self) -> None:
        """State is kept for records alone; a state dict's metadata are not needed."""
        target, state = self.stack[-2], self.stack.pop()
        if type(target) is Instance:
            target.state = state
        elif type(target) is not dict:
            raise UnpicklingError("gives state to what has none")

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is list:
            target.extend(items)
        elif type(target) is not Instance:
            raise UnpicklingError("appends to what is no list")

    def update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is Instance:
            return
        if type(target) is not dict:
            raise UnpicklingError("sets items of what is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:
                self.odd_keys += 1
                if type(key) not in (int, bool, float, type(None), Global, Instance) or self.odd_keys > MAX_ODD_KEYS:
                    raise UnpicklingError("has a dictionary with keys that are not names")
            target[key] = value


OPCODES: dict[bytes, Callable[[Machine], object]] = {
    pickle.PROTO: lambda m: m.read(1),
    pickle.FRAME: lambda m: m.read(8),
    pickle.MARK: Machine.mark,
    pickle.POP: lambda m: m.stack.pop() if m.stack else m.since_mark(),
    pickle.POP_MARK: Machine.since_mark,
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.BININT: lambda m: m.push(m.number("<i")),
    pickle.BININT1: lambda m: m.push(m.number("<B")),
    pickle.BININT2: lambda m: m.push(m.number("<H")),
    pickle.LONG1: lambda m: m.push(int.from_bytes(m.read(m.number("<B")), "little", signed=True)),
    pickle.BINFLOAT: lambda m: m.push(m.number(">d")),
    pickle.SHORT_BINUNICODE: lambda m: m.push(m.read(m.number("<B")).decode()),
    pickle.BINUNICODE: lambda m: m.push(m.read(m.number("<I")).decode()),
    pickle.SHORT_BINBYTES: lambda m: m.push(m.read(m.number("<B"))),
    pickle.BINBYTES: lambda m: m.push(m.read(m.number("<I"))),
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.TUPLE1: lambda m: m.push(tuple(m.last(1))),
    pickle.TUPLE2: lambda m: m.push(tuple(m.last(2))),
    pickle.TUPLE3: lambda m: m.push(tuple(m.last(3))),
    pickle.TUPLE: lambda m: m.push(tuple(m.since_mark())),
    pickle.EMPTY_LIST: lambda m: m.push([]),
    pickle.EMPTY_SET: lambda m: m.push([]),
    pickle.FROZENSET: lambda m: m.push(m.since_mark()),
    pickle.EMPTY_DICT: lambda m: m.push({}),
    pickle.APPEND: lambda m: m.extend(m.last(1)),
    pickle.APPENDS: lambda m: m.extend(m.since_mark()),
    pickle.ADDITEMS: lambda m: m.extend(m.since_mark()),
    pickle.SETITEM: lambda m: m.update(m.last(2)),
    pickle.SETITEMS: lambda m: m.update(m.since_mark()),
    pickle.BINPUT: lambda m: m.remember(m.number("<B")),
    pickle.LONG_BINPUT: lambda m: m.remember(m.number("<I")),
    pickle.MEMOIZE: lambda m: m.remember(len(m.memo)),
    pickle.BINGET: lambda m: m.push(m.memo[m.number("<B")]),
    pickle.LONG_BINGET: lambda m: m.push(m.memo[m.number("<I")]),
    pickle.GLOBAL: lambda m: m.name(m.window.line(), m.window.line()),
    pickle.STACK_GLOBAL: lambda m: m.name(*m.last(2)),
    pickle.BINPERSID: Machine.refer,
    pickle.REDUCE: lambda m: m.push(call(*m.last(2))),
    pickle.NEWOBJ: lambda m: m.push(make(*m.last(2))),
    pickle.NEWOBJ_EX: lambda m: m.push(make(*m.last(3))),
    pickle.BUILD: Machine.build,
}
"""What torch's pickles of protocols 2 to 5 are made of."""
