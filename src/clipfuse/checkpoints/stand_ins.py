"""What stands for the things that a torch pickle names and calls: tensors' places, containers, and inert records.

Nothing here imports or calls what a file says. A call that a pickle asks for is looked up in a table of our own; a
class that is not in it gives an `Instance`, and a function that is not in it is refused.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pickle import UnpicklingError
from typing import Any

import torch

from clipfuse.checkpoints.stored_tensor import (
    READABLE,
    STORAGE,
    STORAGES,
    OddTensor,
    Storage,
    StoredTensor,
    is_count,
    rebuild_v2,
    rebuild_v3,
)

MAX_NAME = 500
MAX_ARGUMENTS = 16
TENSORS = ("torch.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer")

OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Python 2's, which pickles of protocol 2 still name."""
TYPES = "bool bytearray bytes complex dict float frozenset int list object range set slice str tuple xrange"
PATHS = "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath"
HARMLESS = frozenset(
    f"{module}.{name}"
    for module, names in {
        "_codecs": "encode",
        "argparse": "Namespace",
        "builtins": TYPES,
        "collections": "Counter OrderedDict defaultdict deque",
        "copyreg": "_reconstructor",
        "functools": "partial",
        "pathlib": PATHS,
        "pathlib._local": PATHS,
    }.items()
    for name in names.split()
)
"""Of the standard library, what may be named; calls of it give inert records."""
INERT = HARMLESS | {
    *("torch.device", "torch.serialization._get_layout", "numpy.dtype", "numpy.ndarray"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
}
"""What does not look like a class and may be called all the same: it makes values that stand beside weights."""
QUALIFIED = re.compile(r"\w+(\.\w+)*")


@dataclass(frozen=True, eq=False, slots=True)
class Global:
    """A class or function that a pickle names."""

    name: str


@dataclass(eq=False, slots=True)
class Instance:
    """What a call would have made, by the name of its class, and the state that it was given."""

    name: str
    state: Any = None


def find(module: str, name: str) -> Global | torch.dtype:
    """What stands for a name; dtypes for themselves."""
    qualified = f"{OLD_MODULES.get(module, module)}.{name}" if len(module) + len(name) < MAX_NAME else ""
    if not QUALIFIED.fullmatch(qualified):
        raise UnpicklingError(f"asks for {f'{module[:40]}.{name[:40]}'!r}, which is no name")
    if qualified not in HARMLESS and qualified.partition(".")[0] in sys.stdlib_module_names:
        raise UnpicklingError(f"asks for {qualified}; nothing of it was run")
    return READABLE.get(qualified) or Global(qualified)


def is_plumbing(name: str) -> bool:
    """Whether a name only serves to store tensors, numbers and containers."""
    return name in CALLS or name in INERT or name in TENSORS or STORAGE.fullmatch(name) is not None


def call(function: Any, arguments: Any) -> Any:
    """What stands for the result of a call."""
    if type(function) is not Global or type(arguments) is not tuple:
        raise UnpicklingError("calls what is no class")
    known = CALLS.get(function.name)
    if known and len(arguments) <= MAX_ARGUMENTS:
        return known(*arguments)
    if function.name in INERT or function.name.rpartition(".")[2].lstrip("_")[:1].isupper():
        return Instance(function.name)
    raise UnpicklingError(f"calls {function.name}; nothing of it was run")


def make(kind: Any, *_: Any) -> Instance:
    """What stands for an instance of a class, whatever it is made from."""
    if type(kind) is not Global:
        raise UnpicklingError("makes something of what is no class")
    return Instance(kind.name)


def refer(reference: Any) -> Storage | Global:
    """What a persistent id refers to: a storage, or (before torch 1.6) a class with its source."""
    if type(reference) is not tuple or not 4 <= len(reference) <= 6 or type(reference[1]) is not Global:
        raise UnpicklingError("refers to something else than storages")
    kind, named, key, _, *rest = reference
    if kind == "module" and not rest:
        return named
    stored = STORAGE.fullmatch(named.name)
    if kind != "storage" or stored is None:
        raise UnpicklingError(f"refers to {named.name}, which is no known type of storage")
    if type(key) is not str or not rest or not is_count(rest[0]) or rest[1:] not in ([], [None]):
        raise UnpicklingError("has a storage without key or size, or a view of a storage")
    return Storage(key, STORAGES[stored["kind"]], rest[0])


def rebuild_subclass(function: Any, kind: Any, arguments: Any, state: Any) -> StoredTensor | OddTensor:
    if type(function) is not Global or type(kind) is not Global or not function.name.startswith("torch._utils."):
        raise UnpicklingError("rebuilds something else than a tensor")
    return parameter(call(function, arguments)) if kind.name in TENSORS else OddTensor(f"is a {kind.name}")


def parameter(data: Any, *_: Any) -> StoredTensor | OddTensor:
    if not isinstance(data, StoredTensor | OddTensor):
        raise UnpicklingError("has a parameter that is no tensor")
    return data


def odd(what: str) -> Callable[..., OddTensor]:
    return lambda *_: OddTensor(what)


def same(given: Any, *_: Any) -> list[Any] | tuple[Any, ...] | dict[Any, Any]:
    """A container made of another is that other: sets stay lists, so that nothing is hashed."""
    if type(given) not in (list, tuple, dict):
        raise UnpicklingError("makes a container of what is none")
    return given


CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": rebuild_v2,
    "torch._utils._rebuild_tensor_v2": rebuild_v2,
    "torch._utils._rebuild_tensor_v3": rebuild_v3,
    "torch._utils._rebuild_parameter": parameter,
    "torch._utils._rebuild_parameter_with_state": parameter,
    "torch._tensor._rebuild_from_type_v2": rebuild_subclass,
    "torch._utils._rebuild_sparse_tensor": odd("is sparse"),
    "torch._utils._rebuild_qtensor": odd("is quantized"),
    "torch._utils._rebuild_nested_tensor": odd("is a nested tensor"),
    "torch._utils._rebuild_meta_tensor_no_storage": odd("has no values (it is on the meta device)"),
    "torch.Size": same,
    **{f"torch.jit._pickle.build_{kind}list": same for kind in ("bool", "double", "int", "tensor")},
    "torch.jit._pickle.restore_type_tag": same,
    "builtins.set": same,
    "builtins.frozenset": same,
    "collections.OrderedDict": lambda: {},
    "collections.defaultdict": lambda factory=None: {},
    "copyreg._reconstructor": make,
}
"""Calls that are understood, and what is done instead."""
