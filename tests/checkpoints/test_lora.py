"""LoRA adapters against their formulae in float64; expected values of options are those that peft 0.21 gives."""

import json
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import clipfuse
from clipfuse.checkpoints.applied import applied
from clipfuse.checkpoints.checkpoint import Checkpoint, from_memory, open_checkpoint
from clipfuse.checkpoints.geometry import Geometry, parameter_shapes
from clipfuse.checkpoints.lora import is_adapter, open_adapter, read_adapter_config, zero_factors
from clipfuse.checkpoints.lora_store import LoraStore
from clipfuse.errors import CheckpointError
from clipfuse.pool.model_pool import ModelPool

GEOMETRY = Geometry(
    hidden_size=40, intermediate_size=90, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
)
"""More rows than are computed at once."""
SHAPES = parameter_shapes(GEOMETRY)
LAYERS = ("encoder.layers.0.", "encoder.layers.1.")
QUERY, UP = "self_attn.q_proj", "mlp.fc1"
POSITIONS, PATCHES = "embeddings.position_embedding", "embeddings.patch_embedding"
OUTER = "base_model.model."
Tensors = dict[str, Tensor]


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.3


WEIGHTS: Tensors = {name: noise(seed, *shape) for seed, (name, shape) in enumerate(SHAPES.items())}


@pytest.fixture
def base() -> Checkpoint:
    return from_memory(WEIGHTS, "base")


def write(folder: Path, tensors: Tensors, linearised: bool = False, **config: Any) -> Path:
    """An adapter's folder, of rank 3 with α = 6 unless told otherwise."""
    folder.mkdir(exist_ok=True)
    tree = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "fc1"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(tree))
    save_file(tensors, folder / ("linearized_adapter_model.safetensors" if linearised else "adapter_model.safetensors"))
    return folder


def factors(module: str, rank: int = 3, seed: int = 100, prefix: str = "", adapter: str = "") -> Tensors:
    """A and B of a module as peft stores them."""
    out, *inputs = SHAPES[f"{module}.weight"]
    a, b = noise(seed, rank, *inputs), noise(seed + 1, out, rank, *[1] * (len(inputs) - 1))
    return {f"{OUTER}{prefix}{module}.lora_A{adapter}.weight": a, f"{OUTER}{prefix}{module}.lora_B{adapter}.weight": b}


def everywhere(*modules: str, rank: int = 3, **options: str) -> Tensors:
    """Factors of modules in both layers, different ones."""
    found: Tensors = {}
    for number, layer in enumerate(LAYERS):
        for module in modules:
            found |= factors(layer + module, rank, 100 + 10 * number + len(module), **options)
    return found


TENSORS = everywhere(QUERY, UP)


def product(tensors: Tensors, module: str) -> Tensor:
    """B A, float64, as (out, inputs)."""
    a, b = (tensors[f"{OUTER}{module}.lora_{part}.weight"].double() for part in "AB")
    return b.flatten(1) @ a.flatten(1)


def check(found: Checkpoint, want: Tensors) -> None:
    assert found.is_delta
    assert set(found) == set(want)
    for name, tensor in want.items():
        assert found[name].dtype == found.spec(name).dtype == torch.float32
        assert found[name].shape == found.spec(name).shape == SHAPES[name]
        torch.testing.assert_close(found[name].double(), tensor.reshape(SHAPES[name]), rtol=1e-6, atol=1e-6)


def store_of(found: Checkpoint) -> LoraStore:
    store = next(iter(found.places.values()))[0]
    assert isinstance(store, LoraStore)
    return store


@pytest.mark.parametrize(
    ("options", "scaling"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 6 / sqrt(3)),
        ({"lora_alpha": 0.5}, 0.5 / 3),
        ({"fan_in_fan_out": True}, 2.0),  # which peft itself takes back for nn.Linear
        ({"target_modules": r".*(q_proj|fc1)"}, 2.0),
        ({"target_modules": r"(?!text).*(q_proj|fc1)"}, 2.0),  # not evaluated: the file decides
        ({"target_modules": None}, 2.0),
        ({"layers_to_transform": [0, 1], "layers_pattern": "layers"}, 2.0),
        ({"init_lora_weights": "eva", "eva_config": {"rho": 2.0}, "peft_version": "0.21.2"}, 2.0),
        ({"exclude_modules": ["embeddings"], "modules_to_save": [], "loftq_config": {}, "unheard_of": 0}, 2.0),
    ],
)
def test_a_plain_adapter(tmp_path: Path, base: Checkpoint, options: dict[str, Any], scaling: float):
    folder = write(tmp_path / "a", TENSORS, **options)
    want = {
        f"{layer}{part}.weight": scaling * product(TENSORS, layer + part) for layer in LAYERS for part in (QUERY, UP)
    }
    for given in (None, base):
        check(open_adapter(folder, "a", given), want)
    assert read_adapter_config(folder).kind == "lora"


@pytest.mark.parametrize("prefix", ["", "vision_model."])
@pytest.mark.parametrize("adapter", ["", ".default"])
def test_both_namings(tmp_path: Path, base: Checkpoint, prefix: str, adapter: str):
    folder = write(tmp_path / "a", everywhere(QUERY, UP, prefix=prefix, adapter=adapter))
    same = open_adapter(write(tmp_path / "b", TENSORS), "b")
    found = open_checkpoint(folder, "a", base)
    assert is_adapter(folder)
    assert not is_adapter(tmp_path)
    assert all(torch.equal(found[name], same[name]) for name in same)
    assert [file.name for file in found.files] == ["adapter_model.safetensors", "adapter_config.json"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_torch_files_and_other_dtypes(tmp_path: Path, dtype: torch.dtype):
    tensors = {name: tensor.to(dtype) for name, tensor in TENSORS.items()}
    folder = write(tmp_path / "a", tensors)
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin")
    found = open_adapter(folder, "a")
    name = LAYERS[0] + QUERY
    torch.testing.assert_close(found[f"{name}.weight"].double(), 2 * product(tensors, name), rtol=1e-6, atol=1e-6)


def test_patterns_go_in_order_and_match_ends_of_names(tmp_path: Path, base: Checkpoint):
    ranks = {"layers.0.self_attn.q_proj": 2, r"0\.mlp.*": 5, "q_proj": 4}
    alphas = {"^layers.1.mlp.fc1": 100, "fc1": 7, r"\.q_proj": 100, r".*1\.self_attn\.q_proj": 9, "q_proj": 1}
    of = {LAYERS[0] + QUERY: (2, 1), LAYERS[0] + UP: (5, 7), LAYERS[1] + QUERY: (4, 9), LAYERS[1] + UP: (3, 7)}
    tensors: Tensors = {}
    for module, (rank, _) in of.items():
        tensors |= factors(module, rank)
    folder = write(tmp_path / "a", tensors, rank_pattern=ranks, alpha_pattern=alphas, use_rslora=True)
    want = {f"{m}.weight": alpha / sqrt(rank) * product(tensors, m) for m, (rank, alpha) in of.items()}
    check(open_adapter(folder, "a", base), want)
    with pytest.raises(
        CheckpointError, match=r"q_proj: A is \(2, 40\) and B \(40, 2\); takes .* with r = 4 by adapter"
    ):
        open_adapter(write(tmp_path / "b", tensors, rank_pattern={"q_proj": 4, **ranks}), "b")


def test_patterns_see_the_name_in_the_file(tmp_path: Path, base: Checkpoint):
    tensors = everywhere(QUERY, UP, rank=4, prefix="vision_model.")
    options: dict[str, Any] = {"rank_pattern": {"^vision_model.encoder.*": 4}, "alpha_pattern": {"^encoder.*": 1}}
    found = open_adapter(write(tmp_path / "a", tensors, **options), "a", base)
    bare = everywhere(QUERY, UP, rank=4)
    check(
        found,
        {f"{layer}{part}.weight": 6 / 4 * product(bare, layer + part) for layer in LAYERS for part in (QUERY, UP)},
    )


def test_patches_and_positions(tmp_path: Path, base: Checkpoint):
    tensors = factors(PATCHES) | {
        f"{OUTER}{POSITIONS}.lora_embedding_A": noise(7, 3, 5),
        f"{OUTER}{POSITIONS}.lora_embedding_B": noise(8, 40, 3),
    }
    folder = write(tmp_path / "a", tensors, target_modules=["patch_embedding", "position_embedding"])
    found = open_adapter(folder, "a", base)
    positions = 2 * (noise(8, 40, 3).double() @ noise(7, 3, 5).double()).T
    check(found, {f"{PATCHES}.weight": 2 * product(tensors, PATCHES), f"{POSITIONS}.weight": positions})
    for name in found:
        pair = store_of(found).factors(name)
        assert pair is not None
        torch.testing.assert_close((pair[0] @ pair[1]).reshape(SHAPES[name]), found[name])


def whole(module: str, tensors: Tensors, magnitude: Tensor, scaling: float) -> Tensor:
    """DoRA's weight less the base's, rows as vectors."""
    weight = WEIGHTS[f"{module}.weight"].double().flatten(1)
    moved = weight + scaling * product(tensors, module)
    return magnitude.double()[:, None] * moved / moved.norm(dim=1, keepdim=True) - weight


@pytest.mark.parametrize("suffix", ["", ".weight"])
def test_dora(tmp_path: Path, base: Checkpoint, suffix: str):
    tensors = factors(PATCHES) | everywhere(UP)
    modules = (PATCHES, *(layer + UP for layer in LAYERS))
    sizes = {module: noise(5, SHAPES[f"{module}.weight"][0]) + 2 for module in modules}
    stored = {f"{OUTER}{module}.lora_magnitude_vector{suffix}": size for module, size in sizes.items()}
    stored[f"{OUTER}{PATCHES}.lora_magnitude_vector{suffix}"] = sizes[PATCHES].reshape(1, -1, 1, 1)
    folder = write(tmp_path / "a", tensors | stored, use_dora=True, target_modules=["patch_embedding", "fc1"])
    found = open_adapter(folder, "a", base)
    check(found, {f"{m}.weight": whole(m, tensors, size, 2.0) for m, size in sizes.items()})
    assert store_of(found).factors(f"{PATCHES}.weight") is None
    tensors |= stored | {f"{OUTER}{LAYERS[1]}{UP}.lora_magnitude_vector{suffix}": torch.ones(3)}
    with pytest.raises(CheckpointError, match=r"fc1: its magnitude is \(3,\), it has 90 rows"):
        open_adapter(
            write(tmp_path / "a", tensors, use_dora=True, target_modules=["patch_embedding", "fc1"]), "a", base
        )


def test_what_is_stored_whole(tmp_path: Path, base: Checkpoint):
    """Biases, the bias of B, and whole modules; peft stores some of them twice, and loads the first."""
    biases = {name: noise(9, *shape) for name, shape in SHAPES.items() if name.endswith(".bias")}
    moved = {**biases, "post_layernorm.weight": noise(3, 40), f"{POSITIONS}.weight": noise(4, 5, 40)}
    tensors = dict(TENSORS)
    for name, tensor in moved.items():
        module, _, kind = name.rpartition(".")
        inner = ".base_layer" if module.endswith((QUERY, UP)) else ""
        tensors[f"{OUTER}{module}{inner}.{kind}"] = tensor
    copies = {"post_layernorm.original_module.bias": noise(1, 40), "post_layernorm.modules_to_save.bias": noise(2, 40)}
    tensors |= {OUTER + name: tensor for name, tensor in copies.items()}
    tensors |= {f"{OUTER}{layer}{UP}.lora_B.bias": noise(6, 90) for layer in LAYERS}
    tensors |= {f"{OUTER}{layer}{QUERY}.lora_B.bias": noise(6, 40) for layer in LAYERS}
    options = {"bias": "all", "lora_bias": True, "modules_to_save": ["post_layernorm", "position_embedding"]}
    want = {name: tensor.double() - WEIGHTS[name].double() for name, tensor in moved.items()}
    for layer in LAYERS:
        for module, size in ((layer + QUERY, 40), (layer + UP, 90)):
            want[f"{module}.weight"] = 2 * product(TENSORS, module)
            want[f"{module}.bias"] += 2 * noise(6, size).double()
    check(open_adapter(write(tmp_path / "a", tensors, **options), "a", base), want)
    for lost in ("post_layernorm.weight", "pre_layrnorm.bias", f"{LAYERS[1]}{UP}.base_layer.bias"):
        less = {name: tensor for name, tensor in tensors.items() if name != OUTER + lost}
        with pytest.raises(CheckpointError, match=f"lacks {lost.replace('.base_layer', '')}, which bias or modules_to"):
            open_adapter(write(tmp_path / "a", less, **options), "a", base)


def test_biases_of_adapted_layers_only(tmp_path: Path, base: Checkpoint):
    biases = {f"{layer}{UP}.base_layer.bias": noise(2, 90) for layer in LAYERS}
    biases |= {f"{layer}{QUERY}.bias": noise(2, 40) for layer in LAYERS}  # peft before 0.6
    tensors = TENSORS | {OUTER + name: tensor for name, tensor in biases.items()}
    found = open_adapter(write(tmp_path / "a", tensors, bias="lora_only"), "a", base)
    assert len(found) == 8
    torch.testing.assert_close(found[f"{LAYERS[0]}{UP}.bias"], noise(2, 90) - WEIGHTS[f"{LAYERS[0]}{UP}.bias"])
    del tensors[f"{OUTER}{LAYERS[1]}{UP}.base_layer.bias"]
    with pytest.raises(
        CheckpointError, match=r"lacks encoder\.layers\.1\.mlp\.fc1\.bias, which bias or modules_to_save"
    ):
        open_adapter(write(tmp_path / "a", tensors, bias="lora_only"), "a", base)


@pytest.mark.parametrize(
    ("extra", "options", "words"),
    [
        ({}, {"use_dora": True}, "use_dora: the rows' magnitudes"),
        ({}, {"bias": "lora_only"}, "bias=lora_only: biases are stored whole"),
        ({}, {"modules_to_save": ["post_layernorm"]}, "modules_to_save: modules are stored whole"),
        ({f"{OUTER}post_layernorm.bias": noise(0, 40)}, {}, "post_layernorm.bias is stored whole"),
    ],
)
def test_what_needs_the_base(tmp_path: Path, extra: Tensors, options: dict[str, Any], words: str):
    with pytest.raises(CheckpointError, match=rf"{words}.*; takes the base \(_pretrained_\) as well"):
        open_adapter(write(tmp_path / "a", TENSORS | extra, **options), "a")


def linearised(b0: float, inner: bool) -> Tensors:
    """A linearised adapter; with `inner` its base layers were trained as well."""
    found: Tensors = {}
    for seed, module in enumerate(layer + part for layer in LAYERS for part in (QUERY, UP)):
        out, width = SHAPES[f"{module}.weight"]
        now = {
            "base_layer.weight": noise(seed, out, width),
            "base_layer.bias": noise(seed + 50, out),
            "lora_A.default.weight": noise(seed + 1, 3, width),
            "lora_B.default.weight": noise(seed + 2, out, 3),
        }
        small = (noise(seed + 3, 3, width), b0 * noise(seed + 4, out, 3))
        before = (WEIGHTS[f"{module}.weight"], WEIGHTS[f"{module}.bias"], *small)
        for number, (kind, initial) in enumerate(zip(now, before, strict=True)):
            if inner or number >= 2:
                found[f"{OUTER}{module}.model.{kind}"] = now[kind]
                found[f"{OUTER}{module}.params0_values.{number}"] = initial
    return found


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, on the first derivative
@pytest.mark.parametrize("b0", [0.0, 1.0])
@pytest.mark.parametrize("inner", [False, True])
def test_a_linearised_layer_is_linear_in_its_input(tmp_path: Path, base: Checkpoint, b0: float, inner: bool):
    """The file's layers, as functions of the input, against torch's derivative of a LoRA layer."""
    tensors = linearised(b0, inner)
    bias = "lora_only" if inner else "none"
    folder = write(tmp_path / "a", tensors, linearised=True, use_rslora=True, bias=bias)
    assert read_adapter_config(folder).kind == "linearised-lora"
    found = open_adapter(folder, "a", base)
    x = noise(77, 11, 40).double()

    def layer(weight: Tensor, bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return x @ weight.T + bias + 6 / sqrt(3) * (x @ a.T) @ b.T

    for module in (LAYERS[0] + QUERY, LAYERS[1] + UP):
        w0, bias0 = (WEIGHTS[f"{module}.{kind}"].double() for kind in ("weight", "bias"))
        stem = f"{OUTER}{module}."
        before = [w0, bias0, *(tensors[f"{stem}params0_values.{number}"].double() for number in (2, 3))]
        kinds = ("base_layer.weight", "base_layer.bias", "lora_A.default.weight", "lora_B.default.weight")
        now = [tensors.get(f"{stem}model.{kind}", old).double() for kind, old in zip(kinds, before, strict=True)]
        steps = tuple(new - old for new, old in zip(now, before, strict=True))
        derived = torch.func.jvp(layer, tuple(before), steps)
        moved = bias0 + (found[f"{module}.bias"].double() if inner else 0)
        full = w0 + found[f"{module}.weight"].double()
        torch.testing.assert_close(x @ full.T + moved, derived[0] + derived[1], rtol=1e-5, atol=2e-6)
        if not inner:
            pair = store_of(found).factors(f"{module}.weight")
            assert pair is not None
            assert pair[1].shape == (6 if b0 else 3, 40)
            torch.testing.assert_close(pair[0] @ pair[1], found[f"{module}.weight"])


@pytest.mark.parametrize("lost", [".params0_values.2", ".params0_values.3", ".model.lora_A.default.weight"])
def test_a_linearised_adapter_without_its_initial_values(tmp_path: Path, lost: str):
    tensors = linearised(0.0, False)
    del tensors[f"{OUTER}{LAYERS[1]}{UP}{lost}"]
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.fc1 \(params0_values\).* weights cannot be told"):
        open_adapter(write(tmp_path / "a", tensors, linearised=True), "a")
    plain = {name: tensor for name, tensor in linearised(0.0, False).items() if "params0" not in name}
    with pytest.raises(CheckpointError, match="holds 0 initial values of"):
        open_adapter(write(tmp_path / "b", plain, linearised=True), "b")
    tensors = linearised(0.0, False) | {f"{OUTER}{LAYERS[1]}{UP}.params0_values.2": torch.ones(3, 41)}
    with pytest.raises(CheckpointError, match=r"A is \(3, 40\), its initial value \(3, 41\)"):
        open_adapter(write(tmp_path / "a", tensors, linearised=True), "a")
    with pytest.raises(CheckpointError, match=r"lacks encoder\.layers\.0\..*\.bias, which bias or"):
        open_adapter(write(tmp_path / "a", linearised(0.0, False), linearised=True, bias="lora_only"), "a")
    write(tmp_path / "b", TENSORS)
    with pytest.raises(CheckpointError, match="which are different experts; takes one"):
        open_adapter(tmp_path / "b", "b")


def test_a_slice_has_the_bits_of_the_whole(tmp_path: Path, base: Checkpoint):
    adapters = [write(tmp_path / "a", TENSORS), write(tmp_path / "b", linearised(1.0, True), linearised=True)]
    for folder in adapters:
        found = open_adapter(folder, "a", base)
        for name in found:
            values, count = found[name].flatten(), found.spec(name).numel
            for start, stop in ((0, count), (0, 1), (count - 1, count), (count // 3, count // 2 + 1)):
                room = bytearray(4 * (stop - start))
                assert found.read_into(name, start, memoryview(room))
                assert torch.equal(torch.frombuffer(room, dtype=torch.float32), values[start:stop]), (name, start)
            found.release(name)
            assert torch.equal(found[name].flatten(), values)


def test_factors_that_are_still_zero_are_named(tmp_path: Path, base: Checkpoint):
    tensors = TENSORS | {f"{OUTER}{LAYERS[1]}{UP}.lora_B.weight": torch.zeros(90, 3)}
    found = open_adapter(write(tmp_path / "a", tensors), "a")
    assert zero_factors(found) == [LAYERS[1] + UP]
    assert not found[f"{LAYERS[1]}{UP}.weight"].any()
    assert zero_factors(open_adapter(write(tmp_path / "b", TENSORS), "b")) == []
    assert zero_factors(base) == []


def dropped(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != OUTER + name}


def added(name: str, *shape: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: torch.ones(*shape or (2,))}


Q0 = f"{LAYERS[0]}{QUERY}"
WRONG: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "no B": (dropped(f"{Q0}.lora_B.weight"), f"{Q0} lacks the B; by adapter_config.json it has A, B"),
    "no A": (dropped(f"{Q0}.lora_A.weight"), f"{Q0} lacks the A"),
    "a layer is missing": (
        lambda tensors: {key: tensor for key, tensor in tensors.items() if Q0 not in key},
        f"lacks the factors of {Q0}, which target_modules",
    ),
    "of a module that is not named": (lambda t: t | factors(LAYERS[0] + "mlp.fc2"), "mlp.fc2, which adapter_config.json"),
    "of the text encoder": (added(f"{OUTER}text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight"), "only the vision"),
    "of the projection": (added(f"{OUTER}visual_projection.lora_A.weight"), "only the vision encoder is fused"),
    "of a classifier": (added(f"{OUTER}classifier.weight"), "belongs to no vision encoder's adapter"),
    "under no known prefix": (added(f"model.{Q0}.lora_A.weight"), "belongs to no vision encoder's adapter"),
    "of an unknown part": (added(f"{OUTER}{Q0}.lora_C.weight"), "of no part of an adapter that is known"),
    "of an unknown module": (added(f"{OUTER}encoder.layers.0.conv.lora_A.weight"), "of no part of an adapter that is"),
    "magnitudes of no DoRA": (added(f"{OUTER}{Q0}.lora_magnitude_vector"), "has a magnitude; by adapter_config.json"),
    "an unasked bias": (added(f"{OUTER}{Q0}.lora_B.bias"), "has a bias of B"),
    "an embedding's factor": (added(f"{OUTER}{Q0}.lora_embedding_A"), "of no part of an adapter that is known"),
    "wrapped as linearised": (added(f"{OUTER}{Q0}.model.lora_A.default.weight"), "of no part of an adapter that is"),
    "two adapters": (added(f"{OUTER}{Q0}.lora_B.other.weight"), "are the same"),
    "two adapters' parts": (
        lambda tensors: {key.replace("lora_A", "lora_A.other"): tensor for key, tensor in tensors.items()},
        "holds several adapters",
    ),
    "half under the other naming": (
        lambda tensors: {key.replace("el.encoder.layers.1", "el.vision_model.encoder.layers.1"): t for key, t in tensors.items()},
        "holds several adapters",
    ),
    "another rank": (lambda t: t | factors(Q0, 4), r"A is \(4, 40\) and B \(40, 4\); takes .* with r = 3"),
    "factors of two ranks": (added(f"{OUTER}{Q0}.lora_B.weight", 40, 4), r"B \(40, 4\)"),
    "factors of a convolution": (added(f"{OUTER}{Q0}.lora_A.weight", 3, 40, 1, 1), r"A is \(3, 40, 1, 1\)"),
    "a vector": (added(f"{OUTER}{Q0}.lora_A.weight", 3), r"A is \(3,\)"),
    "nothing": (added(f"{OUTER}{Q0}.lora_A.weight", 3, 0), "is empty or not floating point"),
    "of another width": (added(f"{OUTER}{Q0}.lora_A.weight", 3, 41), r"its difference is \(40, 41\), the base's \(40, 40\)"),
    "a layer that the base lacks": (lambda t: t | {k.replace("layers.1", "layers.2"): v.clone() for k, v in t.items()}, "the base does not"),
    "a value that the base lacks": (added(f"{OUTER}encoder.norm.weight"), "holds encoder.norm.weight, which the base"),
    "a value of another shape": (added(f"{OUTER}post_layernorm.bias", 41), r"post_layernorm.bias is \(41,\); before"),
    "a copy alone": (added(f"{OUTER}pre_layrnorm.modules_to_save.default.bias", 40), "is a copy of what is not there"),
    "integers": (lambda t: t | {f"{OUTER}{Q0}.lora_A.weight": torch.ones(3, 40, dtype=torch.int8)}, "neither quantised"),
    "no tensors": (lambda tensors: {}, "holds no tensors"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, base: Checkpoint, change: Callable[[Tensors], Tensors], words: str
):
    folder = write(tmp_path / "a", change(TENSORS))
    with pytest.raises(CheckpointError, match=words) as caught:
        open_adapter(folder, "a", base)
    assert str(caught.value).startswith(f"{folder}/adapter_model.safetensors: ")
    assert "\n" not in str(caught.value)


def test_missing_layers_are_found_without_a_base(tmp_path: Path):
    one = {name: tensor for name, tensor in TENSORS.items() if LAYERS[1] in name}
    with pytest.raises(CheckpointError, match=r"lacks the factors of encoder\.layers\.0\.self_attn\.q_proj"):
        open_adapter(write(tmp_path / "a", one), "a")
    assert len(open_adapter(write(tmp_path / "a", one, layers_to_transform=1), "a")) == 2
    others: tuple[dict[str, Any], ...] = (
        {"layers_to_transform": [1, 2]},
        {"target_modules": "all-linear"},
        {"target_modules": ["fc1", "1.mlp.fc2"]},
    )
    for options in others:
        with pytest.raises(CheckpointError, match="lacks the factors of"):
            open_adapter(write(tmp_path / "a", one, **options), "a")


def test_small_factors_do_not_claim_terabytes(tmp_path: Path):
    name = f"{OUTER}{Q0}"
    huge = {f"{name}.lora_A.weight": torch.ones(1, 1 << 20), f"{name}.lora_B.weight": torch.ones(1 << 20, 1)}
    with pytest.raises(CheckpointError, match="elements at most"):
        open_adapter(write(tmp_path / "a", huge, r=1, target_modules=["q_proj"]), "a")


def test_without_tensors(tmp_path: Path):
    folder = write(tmp_path / "a", TENSORS)
    (folder / "adapter_model.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(CheckpointError, match="git-lfs pointer"):
        open_adapter(folder, "a")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no adapter's tensors; looked for adapter_model\.safetensors, "):
        open_adapter(folder, "a")


@pytest.mark.parametrize("method", ["task_arithmetic", "ties_merging", "tsv_merging"])
@pytest.mark.parametrize("linear", [False, True])
def test_a_merge_with_an_adapter_is_that_of_full_weights(tmp_path: Path, base: Checkpoint, method: str, linear: bool):
    tensors = linearised(1.0, False) if linear else TENSORS
    adapter = open_adapter(write(tmp_path / "a", tensors, linearised=linear), "a", base)
    other = from_memory({name: tensor + noise(31, *tensor.shape) / 3 for name, tensor in WEIGHTS.items()}, "b")
    experts = {"a": adapter, "b": other}
    found = clipfuse.merge(ModelPool(base, experts), method).tensors
    want = clipfuse.merge(ModelPool(base, experts | {"a": applied(base, adapter)}), method).tensors
    for name in want:
        torch.testing.assert_close(found[name], want[name], rtol=1e-4, atol=1e-4 if method == "tsv_merging" else 2e-6)
    alone = clipfuse.merge(ModelPool(base, {"a": adapter}), "task_arithmetic", scaling_factor=1.0).tensors
    assert all(torch.equal(alone[name], applied(base, adapter)[name]) for name in base)
