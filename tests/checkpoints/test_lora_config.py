"""What an adapter's configuration may say, and that all else is refused in one line, soon."""

import json
import time
from pathlib import Path

import pytest

from clipfuse.checkpoints.lora_config import HARMLESS, REFUSED, AdapterConfig, read_adapter_config
from clipfuse.errors import CheckpointError

LORA_CONFIG = (
    *("alora_invocation_tokens", "alpha_pattern", "arrow_config", "auto_mapping", "base_model_name_or_path"),
    *("bias", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules", "fan_in_fan_out"),
    *("inference_mode", "init_lora_weights", "kasa_config", "layer_replication", "layers_pattern"),
    *("layers_to_transform", "loftq_config", "lora_alpha", "lora_bias", "lora_dropout", "lora_ga_config"),
    *("megatron_config", "megatron_core", "modules_to_save", "monteclora_config", "peft_type", "peft_version"),
    *("qalora_group_size", "r", "rank_pattern", "revision", "target_modules", "target_parameters", "task_type"),
    *("trainable_token_indices", "use_bdlora", "use_dora", "use_qalora", "use_rslora", "velora_config"),
)
"""What peft 0.21 writes into every adapter_config.json."""


def write(folder: Path, **changes: object) -> Path:
    tree = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], **changes}
    (folder / "adapter_config.json").write_text(json.dumps(tree))
    return folder


def test_every_key_of_peft_has_a_place():
    known = {*HARMLESS, *REFUSED, *AdapterConfig.model_fields, "peft_type", "init_lora_weights"}
    assert known - set(LORA_CONFIG) == {"kind", "runtime_config"}
    assert set(LORA_CONFIG) <= known
    assert not HARMLESS & REFUSED.keys()


def test_what_peft_writes_is_read(tmp_path: Path):
    defaults = dict.fromkeys(LORA_CONFIG) | {
        "alpha_pattern": {},
        "rank_pattern": {},
        "loftq_config": {},
        "bias": "none",
        "init_lora_weights": True,
        "megatron_core": "megatron.core",
        "qalora_group_size": 16,
        "inference_mode": True,
        "peft_type": "LORA",
        "base_model_name_or_path": "openai/clip-vit-base-patch16",
        "lora_dropout": 0.1,
        "layers_to_transform": 3,
        "layers_pattern": "",
        "modules_to_save": ["post_layernorm"],
        "auto_mapping": {"base_model_class": "CLIPVisionModel"},
    }
    flags = {key: False for key in LORA_CONFIG if key.startswith(("use_", "fan", "ensure")) or key == "lora_bias"}
    config = read_adapter_config(write(tmp_path, **defaults | flags | {"r": 8, "lora_alpha": 16}))
    assert (config.kind, config.r, config.lora_alpha, config.bias) == ("lora", 8, 16, "none")
    assert config.base_model_name_or_path == "openai/clip-vit-base-patch16"
    assert config.layers_to_transform == {3}
    assert config.layers_pattern == frozenset()
    assert config.modules_to_save == {"post_layernorm"}


@pytest.mark.parametrize("key", REFUSED)
def test_what_is_not_followed_is_named(tmp_path: Path, key: str):
    with pytest.raises(CheckpointError, match=rf"adapter_config\.json: {key} is .*: {REFUSED[key]}"):
        read_adapter_config(write(tmp_path, **{key: {"a": 1}}))
    for harmless in (None, False, {}, []):
        assert read_adapter_config(write(tmp_path, **{key: harmless})).r == 8


BAD = {
    "another method": ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; takes LORA"),
    "no method": ({"peft_type": None}, "peft_type is None"),
    "r is zero": ({"r": 0}, "r: input should be greater than 0"),
    "r is negative": ({"r": -4}, "r: input should be greater than 0"),
    "r is a word": ({"r": "8"}, "r: input should be a valid integer"),
    "r is true": ({"r": True}, "r: input should be a valid integer"),
    "alpha is NaN": ({"lora_alpha": float("nan")}, "lora_alpha: input should be a finite number"),
    "alpha is infinite": ({"lora_alpha": float("inf")}, "lora_alpha: input should be a finite number"),
    "alpha is beyond floats": ({"lora_alpha": 10**400}, "lora_alpha: "),
    "alpha is a list": ({"lora_alpha": [16]}, "lora_alpha: input should be a valid number"),
    "bias is unknown": ({"bias": "some"}, "bias: input should be 'none', 'all' or 'lora_only'"),
    "a flag is a word": ({"use_dora": "yes"}, "use_dora: input should be a valid boolean"),
    "targets are numbers": ({"target_modules": [1]}, "target_modules: input should be a valid string"),
    "targets are lists": ({"target_modules": [["q_proj"]]}, "target_modules: "),
    "targets are an object": ({"target_modules": {"a": 1}}, "target_modules: "),
    "a layer is negative": ({"layers_to_transform": [-1]}, "layers_to_transform: "),
    "a layer is far away": ({"layers_to_transform": [10**12]}, "layers_to_transform: "),
    "a rank is zero": ({"rank_pattern": {"q_proj": 0}}, "rank_pattern: input should be greater than 0"),
    "an alpha is NaN": ({"alpha_pattern": {"q_proj": float("nan")}}, "alpha_pattern: input should be a finite"),
    "ranks are a list": ({"rank_pattern": ["q_proj"]}, "rank_pattern: "),
    "the base is a number": ({"base_model_name_or_path": 3}, "base_model_name_or_path: "),
    "init of the base": ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights is 'pissa_niter_16': it changes"),
    "init of an unknown kind": ({"init_lora_weights": "future"}, "init_lora_weights is 'future'; takes true, false"),
    "init is an object": ({"init_lora_weights": {"a": 1}}, "init_lora_weights is "),
    "an unknown key": ({"wobble": 2}, "'wobble' is 2: what it does to the weights is not known"),
    "a pattern is no expression": ({"rank_pattern": {"q_(proj": 4}}, r"rank_pattern: 'q_\(proj': "),
    "a pattern looks around": ({"alpha_pattern": {"(?<=q)_proj": 4}}, "alpha_pattern: "),
    "a pattern explodes": ({"alpha_pattern": {r"(\w+)*x": 4}}, "a repeat stands inside another"),
    "a pattern is long": ({"alpha_pattern": {"q" * 201: 4}}, "has 201 characters; takes 200"),
    "many patterns": ({"alpha_pattern": {str(n): 4 for n in range(1001)}}, "1001 patterns of 2894 characters with 0"),
    "many characters": ({"alpha_pattern": {f"{n:0>100}": 4 for n in range(201)}}, "201 patterns of 20100 characters"),
    "many repeats": (
        {"rank_pattern": {f"{n}.*.*": 4 for n in range(51)}},
        "with 102 repeats; takes 1000 patterns of 20",
    ),
    "larger than any": ({"auto_mapping": "x" * (1 << 20)}, "is larger than 1,048,576 bytes"),
}


@pytest.mark.parametrize(("changes", "words"), BAD.values(), ids=BAD)
def test_bad_values(tmp_path: Path, changes: dict[str, object], words: str):
    began = time.perf_counter()
    with pytest.raises(CheckpointError, match=words) as caught:
        read_adapter_config(write(tmp_path, **changes))
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}/adapter_config.json: ")
    assert "\n" not in said
    assert len(said) < len(str(tmp_path)) + 300
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"\xff\xfe", b'{"a":' * 100_000, b"[]", b"3", b'{"r": ' + b"9" * 5000 + b"}", b"null"]
)
def test_what_is_no_configuration(tmp_path: Path, raw: bytes):
    (tmp_path / "adapter_config.json").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: is (not JSON|a )") as caught:
        read_adapter_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path: Path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_adapter_config(tmp_path)


@pytest.mark.parametrize(
    "option", [{"use_dora": True}, {"lora_bias": True}, {"modules_to_save": ["mlp"]}, {"bias": "all"}]
)
def test_a_linearised_adapter_keeps_its_layers_only(tmp_path: Path, option: dict[str, object]):
    (tmp_path / "linearized_adapter_model.safetensors").touch()
    assert read_adapter_config(write(tmp_path)).kind == "linearised-lora"
    with pytest.raises(CheckpointError, match="a linearised adapter keeps its layers only"):
        read_adapter_config(write(tmp_path, **option))


QUERY, PATCHES = "encoder.layers.11.self_attn.q_proj", "embeddings.patch_embedding"
TARGETS = [
    ({}, QUERY, True),
    ({}, f"vision_model.{QUERY}", True),
    ({"target_modules": ["proj"]}, QUERY, False),
    ({"target_modules": ["self_attn.q_proj", "x"]}, QUERY, True),
    ({"target_modules": [QUERY]}, QUERY, True),
    ({"target_modules": [QUERY]}, f"vision_model.{QUERY}", True),
    ({"target_modules": None}, QUERY, None),
    ({"target_modules": []}, QUERY, False),
    ({"target_modules": "all-linear"}, QUERY, True),
    ({"target_modules": "all-linear"}, PATCHES, False),
    ({"target_modules": "q_proj"}, QUERY, False),
    ({"target_modules": r".*\.(1|11)\..*q_proj"}, QUERY, True),
    ({"target_modules": r"(?=e).*q_proj"}, QUERY, None),
    ({"exclude_modules": ["layers.11.self_attn.q_proj"]}, QUERY, False),
    ({"exclude_modules": ["layers.1.self_attn.q_proj", "1.self_attn.q_proj"]}, QUERY, True),
    ({"exclude_modules": r".*\.11\..*"}, QUERY, False),
    ({"exclude_modules": r"(?=e).*"}, QUERY, None),
    ({"modules_to_save": ["self_attn"]}, QUERY, False),
    ({"modules_to_save": ["attn"]}, QUERY, True),
    ({"layers_to_transform": [1, 2]}, QUERY, False),
    ({"layers_to_transform": [11]}, QUERY, True),
    ({"layers_to_transform": 11}, QUERY, True),
    ({"layers_to_transform": [2], "target_modules": [QUERY]}, QUERY, True),
    ({"layers_to_transform": [0], "target_modules": ["patch_embedding"]}, PATCHES, False),
    ({"layers_to_transform": [11], "layers_pattern": "layers"}, QUERY, True),
    ({"layers_to_transform": [11], "layers_pattern": ["blocks", "encoder.layers"]}, QUERY, True),
    ({"layers_to_transform": [11], "layers_pattern": ["blocks"]}, QUERY, False),
    ({"layers_to_transform": [11], "layers_pattern": "lay.*"}, QUERY, None),
]
"""What peft 0.21's check_target_module_exists says, and None where an expression is not evaluated."""


@pytest.mark.parametrize(("options", "module", "want"), TARGETS)
def test_targets(tmp_path: Path, options: dict[str, object], module: str, want: bool | None):
    assert read_adapter_config(write(tmp_path, **options)).targets(module) is want


def test_modules_that_are_saved(tmp_path: Path):
    """peft compares the ends of names, without a dot."""
    config = read_adapter_config(write(tmp_path, modules_to_save=["norm1", "vision_model.post_layernorm", "mlp"]))
    assert config.saves("encoder.layers.0.layer_norm1.bias")
    assert config.saves("encoder.layers.0.mlp.fc1.weight")
    assert config.saves("vision_model.post_layernorm.weight")
    assert not config.saves("post_layernorm.weight")
    assert not config.saves("encoder.layers.0.layer_norm2.bias")
