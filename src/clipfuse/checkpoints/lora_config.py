"""`adapter_config.json` of a LoRA adapter: what fixes its weights is checked; what else would change them, refused."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, ValidationError

from clipfuse.checkpoints.locate import ADAPTER, FACTORS
from clipfuse.checkpoints.name_patterns import matches_end, matches_whole
from clipfuse.config import Config
from clipfuse.errors import CheckpointError

*PLAIN, LINEARISED = FACTORS
"""Where peft keeps an adapter's tensors, in order of preference; where FusionBench keeps a linearised adapter's."""

MAX_BYTES = 1 << 20
MAX_PATTERNS = 1000
"""Of a kind; a ViT-bigG has 288 modules."""
MAX_CHARACTERS = 20_000
"""Of all patterns of a kind; full names of every module of a ViT-bigG take 13,000."""
MAX_REPEATS = 100
"""Repeats in them; with these limits matching takes seconds at the worst."""
MAX_LAYERS = 100

LINEAR = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2")
"""The linear modules of a layer."""

HARMLESS = {
    *("task_type", "auto_mapping", "peft_version", "inference_mode", "lora_dropout", "runtime_config"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),  # count with their init_lora_weights only
    *("megatron_core", "qalora_group_size"),  # as do these, with megatron_config and use_qalora
    "fan_in_fan_out",  # of Conv1D layers; for nn.Linear, which all of a CLIP's are, peft sets it back
}
"""Keys of peft's LoraConfig that do not change what the stored tensors mean."""

REFUSED = {
    "target_parameters": "factors of single parameters are not read",
    "trainable_token_indices": "single tokens of an embedding are not read",
    "ensure_weight_tying": "a vision encoder ties no weights",
    "layer_replication": "the model has other layers than its base",
    "megatron_config": "Megatron's parallel layers are not read",
    "alora_invocation_tokens": "an activated LoRA depends on the input, so it has no weights",
    "arrow_config": "a router depends on the input, so it has no weights",
    "use_qalora": "factors of quantised layers are not read",
    "use_bdlora": "block-diagonal factors are not read",
    "kasa_config": "KaSA cuts the base's weights",
    "monteclora_config": "sampled factors are not read",
    "velora_config": "VeLoRA's factors are not read",
}
"""Keys that change what the tensors mean, and why they are not followed."""

INITS = ("true", "false", "gaussian", "eva", "orthogonal", "mica")
"""Initial values that leave the base as it is."""
INITS_OF_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initial values that are taken out of the base's weights: the adapter belongs to what is left of them."""


class AdapterConfig(Config):
    """What fixes a LoRA adapter's weights besides its tensors; defaults are peft's."""

    kind: Literal["lora", "linearised-lora"] = "lora"
    """Whether its layers are low-rank, or linear in their factors around the initial ones (FusionBench's L-LoRA)."""
    base_model_name_or_path: str | None = None
    """What it was trained on."""
    revision: str | None = None
    """Of the base."""
    r: PositiveInt = 8
    """Rank."""
    lora_alpha: float = 8
    """B A counts α / r times."""
    use_rslora: bool = False
    """α / √r instead."""
    use_dora: bool = False
    """Whether rows have magnitudes of their own."""
    lora_bias: bool = False
    """Whether B has a bias."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which of the base's biases were trained."""
    rank_pattern: Mapping[str, PositiveInt] = {}
    """Ranks of the modules whose names end as a pattern says."""
    alpha_pattern: Mapping[str, float] = {}
    """Their α."""
    target_modules: str | frozenset[str] | None = None
    """Which modules have factors: the ends of their names, or one regular expression."""
    exclude_modules: str | frozenset[str] = frozenset()
    """Which have none all the same."""
    layers_to_transform: frozenset[Annotated[int, Field(ge=0, lt=MAX_LAYERS)]] = frozenset()
    """Layers that have factors; all if empty."""
    layers_pattern: frozenset[str] = frozenset()
    """Names of what the layers are in."""
    modules_to_save: frozenset[str] = frozenset()
    """Ends of the names of modules that were trained whole."""

    def rank(self, module: str) -> int:
        """r of a module, by the name that it has in the file."""
        return first_match(self.rank_pattern, module, self.r)

    def scaling(self, module: str) -> float:
        """How often B A counts."""
        rank = self.rank(module)
        return first_match(self.alpha_pattern, module, self.lora_alpha) / (math.sqrt(rank) if self.use_rslora else rank)

    def targets(self, module: str) -> bool | None:
        """Whether a module has factors; None if that takes a regular expression of a kind that is not evaluated."""
        if any(listed(self.modules_to_save, above) for above in ancestors(f"{module}.")):
            return False
        if (excluded := chosen(self.exclude_modules, module)) is not False:
            return None if excluded is None else False
        if self.target_modules == "all-linear":
            return module.endswith(LINEAR)
        found = None if self.target_modules is None else chosen(self.target_modules, module)
        if not found or isinstance(self.target_modules, str) or module in (self.target_modules or ()):
            return found
        return self.in_layers(module)

    def in_layers(self, module: str) -> bool | None:
        """Whether a module is in one of the layers that have factors; None as in `targets`."""
        layer = re.search(r"^(?P<before>.*?)\.(?P<number>\d+)\.", module)
        if not self.layers_to_transform:
            return True
        if layer is None or int(layer["number"]) not in self.layers_to_transform:
            return False
        if not self.layers_pattern or listed(self.layers_pattern, layer["before"]):
            return True
        # a plain name would have been listed; peft takes others for regular expressions
        return False if all(re.fullmatch(r"[\w.]+", name) for name in self.layers_pattern) else None

    def saves(self, parameter: str) -> bool:
        """Whether a parameter, by the name that it has in the file, is of a module that was trained whole."""
        names = (above[start:] for above in ancestors(parameter) for start in range(len(above)))
        return any(name in self.modules_to_save for name in names)


def first_match(patterns: Mapping[str, Any], module: str, otherwise: Any) -> Any:
    return next((value for pattern, value in patterns.items() if matches_end(pattern, module)), otherwise)


def ancestors(name: str) -> list[str]:
    """Names of all modules that a parameter is in."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def listed(ends: frozenset[str], name: str) -> bool:
    """Whether a name is listed, or ends in a dot and one that is."""
    parts = name.split(".")
    return any(".".join(parts[start:]) in ends for start in range(len(parts)))


def chosen(told: str | frozenset[str], name: str) -> bool | None:
    if not isinstance(told, str):
        return listed(told, name)
    try:
        return matches_whole(told, name)
    except ValueError:
        return None


def read_adapter_config(folder: Path) -> AdapterConfig:
    """The configuration of the LoRA adapter in a folder.

    Raises:
        CheckpointError: no such file, none of a LoRA, or one that changes the weights in a way that is not followed.
    """
    path = folder / ADAPTER
    tree = read_tree(path)
    if (kind := tree.get("peft_type")) != "LORA":
        raise CheckpointError(f"{path}: peft_type is {kind!r:.60}; takes LORA")
    refuse_what_is_not_followed(tree, path)
    try:
        values = {name: usable(tree[name]) for name in AdapterConfig.model_fields if tree.get(name) is not None}
        values["kind"] = "linearised-lora" if (folder / LINEARISED).is_file() else "lora"
        for name in ("layers_to_transform", "layers_pattern"):
            if isinstance(values.get(name), (int, str)):
                values[name] = frozenset({values[name]} - {""})
        config = AdapterConfig.model_validate(values)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        raise CheckpointError(
            f"{path}: {found['loc'][0]}: {found['msg'].lower()} (found {found['input']!r:.60})"
        ) from None
    check_patterns(config, path)
    if config.kind == "linearised-lora":
        for name in ("use_dora", "lora_bias", "modules_to_save", "bias"):
            if values.get(name) not in (None, False, frozenset(), "none", "lora_only"):
                raise CheckpointError(
                    f"{path}: {name} is {tree[name]!r:.60}: a linearised adapter keeps its layers only"
                )
    return config


def read_tree(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise CheckpointError(f"{path}: is larger than {MAX_BYTES:,} bytes; an adapter's configuration is small")
        tree = json.loads(raw)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: is not JSON ({error})") from None
    if not isinstance(tree, dict):
        raise CheckpointError(f"{path}: is a {type(tree).__name__}; an adapter's configuration is an object")
    return tree


def refuse_what_is_not_followed(tree: Mapping[str, Any], path: Path) -> None:
    for key, value in tree.items():
        if value and key in REFUSED:
            raise CheckpointError(f"{path}: {key} is {value!r:.60}: {REFUSED[key]}")
        if value and key not in {*HARMLESS, *AdapterConfig.model_fields, "peft_type", "init_lora_weights"}:
            raise CheckpointError(f"{path}: {key!r:.60} is {value!r:.60}: what it does to the weights is not known")
    init = tree.get("init_lora_weights")
    init = str(True if init is None else init).lower()
    if init.startswith(INITS_OF_BASE):
        raise CheckpointError(
            f"{path}: init_lora_weights is {init!r:.60}: it changes the base's weights; takes an adapter that peft "
            "converted (save_pretrained with path_initial_model_for_weight_conversion)"
        )
    if init not in INITS:
        raise CheckpointError(f"{path}: init_lora_weights is {init!r:.60}; takes {', '.join(INITS)}")


def usable(value: Any) -> Any:
    """Lists of words or numbers as sets, which stay as they are."""
    is_list = isinstance(value, list) and all(isinstance(item, (str, int)) for item in value)
    return frozenset(value) if is_list else value


def check_patterns(config: AdapterConfig, path: Path) -> None:
    """All patterns are understood, and are so few that matching ends soon."""
    for kind in ("rank_pattern", "alpha_pattern"):
        patterns: Mapping[str, Any] = getattr(config, kind)
        together = "".join(patterns)
        sizes = (len(patterns), len(together), len(re.findall(r"[*+{]", together)))
        limits = (MAX_PATTERNS, MAX_CHARACTERS, MAX_REPEATS)
        if any(size > limit for size, limit in zip(sizes, limits, strict=True)):
            told = "{} patterns of {} characters with {} repeats"
            raise CheckpointError(f"{path}: {kind}: {told.format(*sizes)}; takes {told.format(*limits)}")
        for pattern in patterns:
            try:
                matches_end(pattern, "")
            except ValueError as error:
                raise CheckpointError(f"{path}: {kind}: {pattern!r:.60}: {error}") from None
