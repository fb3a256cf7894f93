"""Names for the tensors in what was pickled: a state dict, a whole module, a TorchScript module.

Names are those of `state_dict()`. What a file repeats or nests costs no more time than the limits here allow.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipfuse.checkpoints.stand_ins import Global, Instance
from clipfuse.checkpoints.stored_tensor import OddTensor, StoredTensor
from clipfuse.errors import CheckpointError

MAX_ENTRIES = 100_000
"""Of all modules together: parameters, buffers, submodules and other attributes."""
MAX_NAME = 500
"""Of a whole name, which bounds how deep modules are nested as well."""
MAX_TEXT = 200
NESTED = ("state_dict", "model", "model_state_dict")
"""Where trainers keep a state dict beside other things."""
SCRIPTED = "__torch__."
"""How the names of TorchScript's classes begin."""
DDP = "module."
TABLES = ("_parameters", "_buffers", "_modules")

Simple = bool | int | float | str


@dataclass
class Tree:
    """Tensors by name, and what modules have of numbers and short texts by dotted name."""

    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    attributes: dict[str, Simple] = field(default_factory=dict)


def named(value: Any, where: Path) -> Tree:
    """The tensors of a pickle's value by name.

    Raises:
        CheckpointError: it is no state dict and no module, or one that is damaged, has no tensors, or odd ones.
    """
    if type(value) is Instance:
        found = of_module(value, where)
    elif type(value) is dict:
        found = of_state_dict(value, where)
    else:
        raise CheckpointError(f"{where}: holds {kind(value)}; takes a state dict (name → tensor) or a pickled module")
    if not found.tensors:
        raise CheckpointError(f"{where}: holds no tensors by name")
    if all(name.startswith(DDP) for name in found.tensors):
        found = Tree(without_prefix(found.tensors), without_prefix(found.attributes))
    return found


def of_state_dict(items: dict[Any, Any], where: Path) -> Tree:
    """A flat state dict's, or those of the one that is nested in it."""
    if not has_tensors(items):
        items = next((items[key] for key in NESTED if has_tensors(items.get(key))), items)
    found = Tree()
    for name, value in items.items():
        check_name(name, "", where)
        if type(value) in (StoredTensor, OddTensor):
            found.tensors[name] = plain(value, name, where)
        elif is_short(value):
            found.attributes[name] = value
        elif type(value) not in (bool, int, float, str, type(None)):
            takes = f"takes tensors by name, also under {' or '.join(NESTED)}"
            raise CheckpointError(f"{where}: {name!r} is {kind(value)}; {takes}")
    return found


def has_tensors(value: Any) -> bool:
    return type(value) is dict and any(type(item) in (StoredTensor, OddTensor) for item in value.values())


def of_module(root: Instance, where: Path) -> Tree:
    """A whole module's, in the order of its state_dict()."""
    found = Tree()
    left = MAX_ENTRIES
    todo: list[tuple[str, Any]] = [("", root)]
    while todo:
        prefix, module = todo.pop()
        state = state_of(module, prefix, where)
        own, children = scripted_parts(state) if module.name.startswith(SCRIPTED) else parts(state)
        left -= len(state) + len(own) + len(children) + 1
        if left < 0:
            raise CheckpointError(f"{where}: has modules of more than {MAX_ENTRIES:,} parts, or that hold themselves")
        for name in (*own, *children):
            check_name(name, prefix, where)
        found.tensors |= {prefix + n: plain(value, prefix + n, where) for n, value in own.items() if value is not None}
        found.attributes |= {prefix + n: value for n, value in state.items() if is_text(n) and is_short(value)}
        todo += [(f"{prefix}{n}.", child) for n, child in reversed(children.items()) if child is not None]
    return found


def state_of(module: Any, prefix: str, where: Path) -> dict[Any, Any]:
    state = module.state if type(module) is Instance else None
    if type(state) is dict and (module.name.startswith(SCRIPTED) or all(type(state.get(t)) is dict for t in TABLES)):
        return state
    what = repr(prefix[:-1]) if prefix else "what it holds"
    raise CheckpointError(f"{where}: {what} is {kind(module)}, which is no module")


def parts(state: dict[Any, Any]) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """A module's own parameters and buffers, and its submodules; None where one is not there."""
    parameters, buffers, children = (state[table] for table in TABLES)
    listed = state.get("_non_persistent_buffers_set")
    # no more than there are buffers: the walk's bound counts these
    hidden = {name for name in listed[: len(buffers)] if type(name) is str} if type(listed) is list else ()
    shown = {name: value for name, value in buffers.items() if name not in hidden}
    return parameters | shown, children


def scripted_parts(state: dict[Any, Any]) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """TorchScript's modules keep all that they have side by side; a tensor that is no buffer looks like one."""
    own = {name: value for name, value in state.items() if type(value) in (StoredTensor, OddTensor)}
    inner = {name: value for name, value in state.items() if type(value) is Instance}
    return own, {name: value for name, value in inner.items() if value.name.startswith(SCRIPTED)}


def plain(value: Any, name: str, where: Path) -> StoredTensor:
    """The tensor itself. Raises CheckpointError if it is odd, or none."""
    if type(value) is StoredTensor:
        return value
    what = value.what if type(value) is OddTensor else f"is {kind(value)}"
    raise CheckpointError(f"{where}: {name!r} {what}; plain tensors are read")


def check_name(name: Any, prefix: str, where: Path) -> None:
    if not is_text(name) or len(prefix) + len(name) > MAX_NAME:
        shown = f"{prefix}{name}"[-80:] if type(name) is str else f"{prefix}({kind(name)})"
        raise CheckpointError(f"{where}: {shown!r} is no name of a tensor: {MAX_NAME} printable characters at most")


def is_text(value: Any) -> bool:
    return type(value) is str and 0 < len(value) <= MAX_TEXT and value.isprintable()


def is_short(value: Any) -> bool:
    """Whether a value is worth keeping as an attribute."""
    return type(value) in (bool, float) or is_text(value) or (type(value) is int and abs(value) < 1 << 63)


def kind(value: Any) -> str:
    """What a value is, for messages."""
    names = {StoredTensor: "tensor", OddTensor: "tensor", dict: "mapping", type(None): "None"}
    name = value.name if type(value) in (Instance, Global) else names.get(type(value), type(value).__name__)
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def without_prefix(items: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(DDP): value for name, value in items.items()}
