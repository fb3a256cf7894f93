"""What the tensors in an adapter's file are, by their names; saved on either side of transformers 5.6."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from clipfuse.checkpoints.lora_config import LINEAR, ancestors
from clipfuse.checkpoints.lora_store import Place
from clipfuse.checkpoints.names import PREFIX, ROOTS
from clipfuse.errors import CheckpointError

K = TypeVar("K")

OUTER = "base_model.model."
"""What peft puts before a model's names; then comes `vision_model.`, or not, as transformers had it."""

POSITIONS, PATCHES = "embeddings.position_embedding", "embeddings.patch_embedding"
MODULE = re.compile(
    rf"encoder\.layers\.(?P<layer>0|[1-9]\d?)\.(?:{'|'.join(map(re.escape, LINEAR))})|{POSITIONS}|{PATCHES}"
)
"""The modules of a vision tower that can have factors."""

NAMED = rf"(?P<module>{MODULE.pattern})(?P<wrapped>\.model)?"
FACTOR = re.compile(NAMED + r"\.(?P<part>lora_\w+?)(?:\.(?P<adapter>[^.]+))??(?P<end>\.weight|\.bias)?")
INITIAL = re.compile(rf"(?P<module>{MODULE.pattern})\.params0_values\.(?P<number>\d{{1,2}})")
VALUE = re.compile(NAMED + r"(?:\.base_layer)?(?P<end>\.weight|\.bias)")
COPY = re.compile(r"(?P<module>.+?)\.(?:original_module|modules_to_save)\.")
"""What peft stores a second time, where a module that was trained whole has biases; it reads the first."""

ROLES = {
    "lora_A.weight": "A",
    "lora_B.weight": "B",
    "lora_B.bias": "bias of B",
    "lora_embedding_A": "A",
    "lora_embedding_B": "B",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}
"""What peft calls the tensors of a module that has factors."""


@dataclass
class Parts:
    """The tensors of an adapter by canonical names."""

    file: Path
    prefix: str = ""
    """What the names of its modules begin with in the file."""
    factors: dict[str, dict[str, Place]] = field(default_factory=dict)
    """Module → role → tensor."""
    values: dict[str, Place] = field(default_factory=dict)
    """Parameters that are stored whole."""
    initial_factors: dict[str, dict[str, Place]] = field(default_factory=dict)
    """Of a linearised adapter, as `factors`."""
    initial_values: dict[str, Place] = field(default_factory=dict)
    """Of a linearised adapter, as `values`."""

    def error(self, text: str) -> CheckpointError:
        return CheckpointError(f"{self.file}: {text}")


def sort_out(stored: Mapping[str, Place], file: Path, linearised: bool) -> Parts:
    """What each tensor of a file is.

    Raises:
        CheckpointError: one that is none of a vision encoder's adapter, is not floating point, or is there twice.
    """
    parts, adapters, prefixes = Parts(file), set[str](), set[str]()
    numbered: dict[str, dict[int, Place]] = {}
    copied: dict[str, str] = {}
    if not stored:
        raise parts.error("holds no tensors")
    for name, place in stored.items():
        bare = name.removeprefix(OUTER)
        prefix = PREFIX if bare.startswith(PREFIX) else ""
        bare = bare.removeprefix(prefix)
        if not name.startswith(OUTER) or not bare.startswith(ROOTS):
            raise parts.error(f"{name!r:.120} belongs to no vision encoder's adapter; only the vision encoder is fused")
        store, there = place
        if not store.specs[there].dtype.is_floating_point or not store.specs[there].numel:
            raise parts.error(f"{name!r:.120} is empty or not floating point; factors are neither quantised nor empty")
        prefixes.add(prefix)
        if copy := COPY.match(bare):
            copied[copy["module"]] = name
        elif linearised and (found := INITIAL.fullmatch(bare)):
            put(parts, numbered.setdefault(found["module"], {}), int(found["number"]), place)
        elif (found := FACTOR.fullmatch(bare)) and bool(found["wrapped"]) == linearised:
            adapters.add(found["adapter"] or "")
            put(parts, parts.factors.setdefault(found["module"], {}), role(parts, found, name), place)
        elif (found := VALUE.fullmatch(bare)) and bool(found["wrapped"]) == linearised:
            put(parts, parts.values, found["module"] + found["end"], place)
        elif not linearised and ".lora_" not in bare:
            put(parts, parts.values, bare, place)
        else:
            raise parts.error(f"{name!r:.120} is of no part of an adapter that is known")
    if len(prefixes) > 1 or len(adapters) > 1:
        raise parts.error(f"holds several adapters, or parts of some: {sorted(prefixes)}, {sorted(adapters)}"[:200])
    whole = {above for name in parts.values for above in ancestors(name)}
    if alone := [name for module, name in copied.items() if module not in whole]:
        raise parts.error(f"{alone[0]!r:.120} is a copy of what is not there")
    parts.prefix = prefixes.pop()
    if linearised:
        pair_initial(parts, numbered)
    return parts


def role(parts: Parts, found: re.Match[str], name: str) -> str:
    """What a tensor is for its module; embeddings have other names, for other shapes."""
    told = found["part"] + (found["end"] or "")
    known = ROLES.get(told)
    if known is None or (told.startswith("lora_embedding") != (found["module"] == POSITIONS) and known in ("A", "B")):
        raise parts.error(f"{name!r:.120} is of no part of an adapter that is known")
    return known


def put(parts: Parts, places: dict[K, Place], key: K, place: Place) -> None:
    if key in places:
        raise parts.error(f"{place[1]!r:.120} and {places[key][1]!r:.120} are the same")
    places[key] = place


def pair_initial(parts: Parts, numbered: Mapping[str, Mapping[int, Place]]) -> None:
    """Initial values are numbered in the order of a layer's parameters: weight, bias, A, B; only trained ones stored.

    Raises:
        CheckpointError: not as many as there are tensors.
    """
    modules = {*parts.factors, *(name.rpartition(".")[0] for name in parts.values), *numbered}
    for module in sorted(modules):
        whole = [name for name in (f"{module}.weight", f"{module}.bias") if name in parts.values]
        roles = [role for role in ("A", "B") if role in parts.factors.get(module, {})]
        found = [place for _, place in sorted(numbered.get(module, {}).items())]
        if len(found) != len(whole) + len(roles):
            raise parts.error(
                f"holds {len(found)} initial values of {parts.prefix}{module} (params0_values) for "
                f"{len(whole) + len(roles)} tensors; without them a linearised adapter's weights cannot be told"
            )
        parts.initial_values |= dict(zip(whole, found, strict=False))
        parts.initial_factors[module] = dict(zip(roles, found[len(whole) :], strict=True))
