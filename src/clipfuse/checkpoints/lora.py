"""LoRA adapters as task vectors, read without peft: plain ones with any option that has weights, and linearised ones.

Every tensor of the file is used, and every module that the configuration names is there, or the adapter is refused:
peft itself passes over what does not fit, and an expert that lacks some of its layers is silently another.
"""

from collections.abc import Iterable
from dataclasses import replace
from math import prod
from pathlib import Path

from clipfuse.checkpoints.checkpoint import Checkpoint, open_files
from clipfuse.checkpoints.locate import ADAPTER
from clipfuse.checkpoints.lora_config import LINEAR, LINEARISED, PLAIN, AdapterConfig, read_adapter_config
from clipfuse.checkpoints.lora_parts import MODULE, PATCHES, POSITIONS, Parts, sort_out
from clipfuse.checkpoints.lora_store import Delta, Factors, LoraStore, Place
from clipfuse.checkpoints.store import Store
from clipfuse.errors import CheckpointError

__all__ = ["is_adapter", "open_adapter", "read_adapter_config", "zero_factors"]

MAX_ELEMENTS = 1 << 28
"""Of one parameter: small factors must not claim terabytes."""


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter."""
    return (folder / ADAPTER).is_file()


def open_adapter(folder: Path, source: str, base: Checkpoint | None = None) -> Checkpoint:
    """The task vector of a LoRA adapter, float32; nothing is multiplied before a tensor is read.

    Args:
        folder: Holds `adapter_config.json` and the tensors.
        source: What messages call it.
        base: The model that it is of. Shapes and layers are checked against it, and what an adapter stores whole
            (biases, modules, DoRA's magnitudes) is told from it.

    Raises:
        CheckpointError: damaged, incomplete, of no CLIP vision encoder, of a kind that is not followed, or one that
            needs the base where none is given.
    """
    config = read_adapter_config(folder)
    stored, files = open_files(tensors_file(folder, config))
    parts = sort_out(stored, files[0], config.kind == "linearised-lora")
    check_complete(config, parts, base)
    deltas: dict[str, Delta] = {}
    for module in parts.factors:
        deltas |= of_module(config, parts, module, base)
    for name, place in parts.values.items():
        before = value_before(parts, name, base)
        delta = deltas.get(name) or Delta(shape_of(place))
        if not shape_of(place) == shape_of(before) == delta.shape:
            raise parts.error(f"{name} is {shape_of(place)}; before it was {shape_of(before)}")
        deltas[name] = replace(delta, moved=(place, before))
    for name, delta in deltas.items():
        check_against(parts, name, delta, base)
    store: Store = LoraStore(deltas, config)
    return Checkpoint({name: (store, name) for name in deltas}, source, (*files, folder / ADAPTER), is_delta=True)


def zero_factors(checkpoint: Checkpoint) -> list[str]:
    """Modules of an adapter that have factors whose product is zero, as B is before training."""
    stores = {id(store): store for store, _ in checkpoint.places.values()}.values()
    found = [(name, delta) for store in stores if isinstance(store, LoraStore) for name, delta in store.deltas.items()]
    return [
        name.removesuffix(".weight")
        for name, delta in found
        if delta.factors and not all(bool(part.any()) for part in delta.factors.pair())
    ]


def tensors_file(folder: Path, config: AdapterConfig) -> Path:
    there = [name for name in (LINEARISED, *PLAIN) if (folder / name).is_file()]
    if not there:
        raise CheckpointError(f"{folder}: holds no adapter's tensors; looked for {', '.join((*PLAIN, LINEARISED))}")
    if config.kind == "linearised-lora" and len(there) > 1:
        raise CheckpointError(f"{folder}: holds {there[0]} and {there[1]}, which are different experts; takes one")
    return folder / there[0]


def shape_of(place: Place) -> tuple[int, ...]:
    store, name = place
    return store.specs[name].shape


def check_complete(config: AdapterConfig, parts: Parts, base: Checkpoint | None) -> None:
    """Each module that has factors by the configuration has them, and no other; so have whole values.

    Raises:
        CheckpointError: one lacks, one is too many, or the base is needed.
    """
    for module in modules(config, parts, base):
        targeted = config.targets(parts.prefix + module)
        if targeted and module not in parts.factors:
            raise parts.error(f"lacks the factors of {parts.prefix}{module}, which target_modules in {ADAPTER} names")
    for module in parts.factors:
        if config.targets(parts.prefix + module) is False:
            raise parts.error(f"has factors of {parts.prefix}{module}, which {ADAPTER} does not name")
    if base is None and config.kind == "lora":
        why = {
            "use_dora: the rows' magnitudes are those": config.use_dora,
            f"bias={config.bias}: biases are stored whole, as those": config.bias != "none",
            "modules_to_save: modules are stored whole, as those": config.modules_to_save,
            f"{next(iter(parts.values), '')} is stored whole, as that": parts.values,
        }
        if told := next((text for text, found in why.items() if found), None):
            raise parts.error(f"{told} of the expert, not its difference; takes the base (_pretrained_) as well")
    for name in [f"{module}.bias" for module in parts.factors if module.endswith(LINEAR)] if base is None else base:
        module, _, kind = name.rpartition(".")
        trained = config.bias == "all" or (config.bias == "lora_only" and module in parts.factors)
        if name not in parts.values and ((kind == "bias" and trained) or config.saves(parts.prefix + name)):
            raise parts.error(f"lacks {parts.prefix}{name}, which bias or modules_to_save in {ADAPTER} names")


def modules(config: AdapterConfig, parts: Parts, base: Checkpoint | None) -> Iterable[str]:
    """The modules that can have factors; without a base in as many layers as file and configuration speak of."""
    if base is not None:
        return [name.removesuffix(".weight") for name in base if MODULE.fullmatch(name.removesuffix(".weight"))]
    found = [MODULE.fullmatch(module) for module in parts.factors]
    spoken_of = {int(match["layer"]) for match in found if match and match["layer"]}
    layers = {*range(max(spoken_of, default=-1) + 1), *config.layers_to_transform}
    return [PATCHES, POSITIONS, *(f"encoder.layers.{layer}.{name}" for layer in sorted(layers) for name in LINEAR)]


def of_module(config: AdapterConfig, parts: Parts, module: str, base: Checkpoint | None) -> dict[str, Delta]:
    """The weight's and, where B has one, the bias's difference. Raises CheckpointError for parts that do not fit."""
    found, told = parts.factors[module], parts.prefix + module
    wanted = ["A", "B"] + ["bias of B"] * (config.lora_bias and module != POSITIONS)
    wanted += ["magnitude"] * config.use_dora
    if odd := sorted(found.keys() ^ set(wanted)):
        state = "has a" if odd[0] in found else "lacks the"
        raise parts.error(f"{told} {state} {odd[0]}; by {ADAPTER} it has {', '.join(wanted)}")
    if module == POSITIONS and config.use_dora:
        raise parts.error(f"{told}: use_dora on an embedding is not followed")
    initial = parts.initial_factors.get(module)
    for role, place in (initial or {}).items():
        if shape_of(place) != shape_of(found[role]):
            raise parts.error(f"{told}: {role} is {shape_of(found[role])}, its initial value {shape_of(place)}")
    shape, scaling = shape_of_weight(config, parts, module), config.scaling(told)
    pair = (initial["A"], initial["B"]) if initial else None
    factors = Factors(found["A"], found["B"], scaling, pair, transposed=module == POSITIONS)
    weight = Delta(shape, factors)
    if config.use_dora and base is not None and f"{module}.weight" in base:
        if prod(shape_of(found["magnitude"])) != shape[0]:
            raise parts.error(f"{told}: its magnitude is {shape_of(found['magnitude'])}, it has {shape[0]} rows")
        weight = replace(weight, magnitude=(found["magnitude"], base.places[f"{module}.weight"]))
    deltas = {f"{module}.weight": weight}
    if "bias of B" in found:
        deltas[f"{module}.bias"] = Delta(shape[:1], added=(found["bias of B"], scaling))
    return deltas


def shape_of_weight(config: AdapterConfig, parts: Parts, module: str) -> tuple[int, ...]:
    """What B A has the shape of. Raises CheckpointError for factors that do not fit each other or the rank."""
    a, b = (shape_of(parts.factors[module][role]) for role in ("A", "B"))
    told, rank = parts.prefix + module, config.rank(parts.prefix + module)
    fits = len(a) == len(b) == (4 if module == PATCHES else 2) and b[2:] in ((), (1, 1))
    if not fits or a[0] != rank or b[1] != rank:
        raise parts.error(f"{told}: A is {a} and B {b}; takes (r, in) and (out, r) with r = {rank} by {ADAPTER}")
    shape = (a[1], b[0]) if module == POSITIONS else (b[0], *a[1:])
    if prod(shape) > MAX_ELEMENTS:
        raise parts.error(f"{told}: B A is {shape}; takes {MAX_ELEMENTS:,} elements at most")
    return shape


def value_before(parts: Parts, name: str, base: Checkpoint | None) -> Place:
    """What a parameter that is stored whole was before training: by the file itself, or the base's."""
    if name in parts.initial_values:
        return parts.initial_values[name]
    if base is None or name not in base:
        raise parts.error(f"holds {parts.prefix}{name}, which the base does not have")
    return base.places[name]


def check_against(parts: Parts, name: str, delta: Delta, base: Checkpoint | None) -> None:
    """A parameter is one of the base's, if that is known. Raises CheckpointError."""
    if base is None:
        return
    if name not in base:
        raise parts.error(f"changes {parts.prefix}{name}, which the base does not have")
    if base.spec(name).shape != delta.shape:
        raise parts.error(f"{parts.prefix}{name}: its difference is {delta.shape}, the base's {base.spec(name).shape}")


def other_base(folder: Path, ref: str) -> str | None:
    """The base that an adapter names, if that is surely not `ref`: another hub id, or another folder that is here."""
    named = read_adapter_config(folder).base_model_name_or_path if is_adapter(folder) else None
    if not named or "://" in ref + named:
        return None
    mine, its = Path(named), Path(ref)
    if mine.exists() != its.exists():
        return None
    same = mine.resolve() == its.resolve() if mine.exists() else named.partition("@")[0] == ref.partition("@")[0]
    return None if same else named
