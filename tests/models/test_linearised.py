"""Linearised towers are the first-order expansion, and learn by its gradient."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionModel

from clipfuse.checkpoints.checkpoint import open_checkpoint
from clipfuse.checkpoints.geometry import read_geometry
from clipfuse.errors import ModelError
from clipfuse.models.build import build_vision_model
from clipfuse.models.clip_base import open_base
from clipfuse.models.encoder import build_encoder, identity_of_files
from clipfuse.models.linearised import LinearisedTower
from tests.random_clip import write_random_clip
from tests.random_experts import random_deltas, write_expert

PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
GRADIENT = torch.randn(3, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("linearised") / "base"
    write_random_clip(folder, "small")
    return folder


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' eager attention takes its softmax in float32 always; here in the dtype of what it is given."""
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda values, dim, dtype=None: softmax(values, dim=dim))


def tower_at(base: Path, deltas: Mapping[str, Tensor], factor: float, dtype: torch.dtype) -> CLIPVisionModel:
    """An ordinary tower with θ0 + factor · τ."""
    tower = build_vision_model(open_checkpoint(base, "base"), read_geometry(base), dtype)
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            if name in deltas:
                parameter += factor * deltas[name].to(dtype)
    return tower


def linearised(base: Path, deltas: Mapping[str, Tensor], dtype: torch.dtype = torch.float64) -> LinearisedTower:
    return LinearisedTower(tower_at(base, {}, 0, dtype), deltas)


def checkpointing(tower: CLIPVisionModel) -> None:
    newer: Any = getattr(tower, "activation_checkpointing_enable", None)  # its name from transformers 5.2x on
    (newer or tower.gradient_checkpointing_enable)({"use_reentrant": False})


@torch.no_grad()
@pytest.mark.parametrize("part", ["", "self_attn", "embeddings", "norm"])
def test_the_value_is_the_numerical_expansion(base: Path, exact: None, part: str):
    deltas, eps = random_deltas(base, 1, part), 1e-5
    kept = {name: value.clone() for name, value in deltas.items()}
    tower = linearised(base, deltas)
    at: dict[int, Tensor] = {
        n: tower_at(base, deltas, n * eps, torch.float64)(PIXELS).pooler_output for n in (-1, 0, 1)
    }
    wanted = at[0] + (at[1] - at[-1]) / (2 * eps)
    torch.testing.assert_close(tower(PIXELS).pooler_output, wanted, rtol=1e-8, atol=1e-8)
    assert float((wanted - at[0]).norm() / at[0].norm()) > 0.02
    for name, value in open_checkpoint(base, "base").items():
        assert torch.equal(tower.origin[name], value.double()), name
    assert all(torch.equal(deltas[name], value) for name, value in kept.items())


@pytest.mark.parametrize("again", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("part", ["", "self_attn"])
def test_the_gradient_is_that_of_an_ordinary_tower_at_the_base_whatever_tau_is(
    base: Path, exact: None, again: bool, part: str
):
    deltas = random_deltas(base, 2, part)
    ordinary = tower_at(base, {}, 0, torch.float64)
    ordinary(PIXELS).pooler_output.backward(GRADIENT)
    wanted = {name: parameter.grad for name, parameter in ordinary.named_parameters() if name in deltas}
    tower = linearised(base, deltas).train()
    passes = []
    tower.tower.get_submodule("encoder.layers.1.self_attn").register_forward_hook(lambda *_: passes.append(1))
    if again:
        checkpointing(tower.tower)
    found = tower(PIXELS).pooler_output
    with torch.no_grad():
        assert torch.equal(found, tower(PIXELS).pooler_output)
    passes.clear()
    found.backward(GRADIENT)
    assert len(passes) == (2 if again else 0)  # the tower itself, and its layers again
    assert tower.deltas.keys() == wanted.keys()
    for name, parameter in tower.deltas.items():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-9, atol=1e-12)
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in tower.tower.parameters())
    assert not any(module.training for module in tower.tower.modules())


@torch.no_grad()
def test_it_is_linear_in_tau(base: Path, exact: None):
    one, other = random_deltas(base, 3), random_deltas(base, 4)
    zero = linearised(base, {})(PIXELS).pooler_output
    assert torch.equal(zero, linearised(base, {n: torch.zeros_like(t) for n, t in one.items()})(PIXELS).pooler_output)
    both = {name: 0.7 * one[name].double() - 3 * other[name].double() for name in one}
    found, first, second = (linearised(base, tau)(PIXELS).pooler_output - zero for tau in (both, one, other))
    torch.testing.assert_close(found, 0.7 * first - 3 * second, rtol=1e-9, atol=1e-12)


def test_a_step_of_training_moves_the_weights_by_it(base: Path):
    deltas = random_deltas(base, 5, "fc1")
    tower = linearised(base, deltas, torch.float32)
    before = tower.weights()
    learning = [parameter for parameter in tower.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, 0.1)
    tower(PIXELS.float()).pooler_output.square().sum().backward()
    optimizer.step()
    for name, value in tower.weights().items():
        step = 0.1 * tower.deltas[name].grad if name in deltas else 0  # type: ignore[operator]
        torch.testing.assert_close(value, before[name] - step)
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name]) is (name not in deltas)


@pytest.mark.parametrize("again", [False, True], ids=["kept", "checkpointed"])
def test_autocast_runs_both_ways_in_lower_precision(base: Path, again: bool):
    deltas = random_deltas(base, 6)

    def learn(autocast: bool) -> tuple[Tensor, dict[str, Tensor]]:
        tower = linearised(base, deltas, torch.float32).train()
        if again:
            checkpointing(tower.tower)
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            found = tower(PIXELS.float()).pooler_output
        found.backward(GRADIENT.float())
        return found.detach(), {name: parameter.grad for name, parameter in tower.deltas.items()}  # type: ignore[misc]

    (found, gradients), (wanted, exactly) = learn(True), learn(False)
    assert 0 < float((found - wanted).norm() / wanted.norm()) < 0.02
    off = {name: float((gradients[name] - exactly[name]).norm() / exactly[name].norm()) for name in exactly}
    assert (
        max(share for name, share in off.items() if "k_proj.bias" not in name) < 0.05
    )  # whose are zero but for rounding
    assert off["encoder.layers.0.mlp.fc1.weight"] > 0
    assert {gradient.dtype for gradient in gradients.values()} == {torch.float32}


def test_a_task_vector_of_another_model_is_refused(base: Path):
    for deltas, words in (
        ({"visual_projection.weight": torch.zeros(8, 16)}, "the tower's not there"),
        ({"post_layernorm.bias": torch.zeros(17)}, r"the task vector's is \(17,\), the tower's \(16,\)"),
    ):
        with pytest.raises(ModelError, match=words):
            linearised(base, deltas)


@torch.no_grad()
def test_an_encoder_of_linearised_weights(base: Path, tmp_path: Path):
    deltas = random_deltas(base, 7, "mlp")
    clip, checkpoints, encoders = open_base(str(base)), {}, {}
    for flag in (False, True):
        folder = write_expert(tmp_path / str(flag), base, deltas, flag)
        checkpoints[flag] = open_checkpoint(folder, "expert")
        encoders[flag] = build_encoder(checkpoints[flag], read_geometry(folder), clip)
    plain, linear = encoders[False], encoders[True]
    pooled = linearised(base, deltas, torch.float32)(PIXELS.float()).pooler_output
    wanted = torch.nn.functional.linear(pooled, clip.projection)
    torch.testing.assert_close(linear.features(PIXELS, None), wanted, rtol=1e-4, atol=1e-5)
    assert float((plain.features(PIXELS, None) - wanted).norm() / wanted.norm()) > 0.005
    assert isinstance(linear.vision, LinearisedTower)
    assert linear.vision.deltas.keys() == deltas.keys(), "parameters that have not moved need no derivative"
    assert linear.bytes == plain.bytes + 4 * sum(delta.numel() for delta in deltas.values())
    assert linear.widest == plain.widest == 4 * 17 * 64
    half = linear.to(torch.device("cpu"), torch.bfloat16).features(PIXELS, None)
    torch.testing.assert_close(half, wanted, rtol=0.1, atol=0.1)


def test_identities_tell_a_linearised_model_from_an_ordinary_one(base: Path, tmp_path: Path):
    folder, clip = write_expert(tmp_path / "a", base, random_deltas(base, 8)), open_base(str(base))
    checkpoint, linear = open_checkpoint(folder, "a"), read_geometry(folder)
    plain = linear.model_copy(update={"linearised": False})
    assert len({identity_of_files(checkpoint, geometry, clip) for geometry in (linear, plain)}) == 2
    assert len({build_encoder(checkpoint, geometry, clip).identity() for geometry in (linear, plain)}) == 2


def test_what_cannot_be_expanded_is_refused(base: Path, tmp_path: Path):
    folder, clip = write_expert(tmp_path / "a", base, random_deltas(base, 9)), open_base(str(base))
    checkpoint, geometry = open_checkpoint(folder, "a"), read_geometry(folder)
    weights = dict(checkpoint)
    with pytest.raises(ModelError, match="is linearised, a CLIPVisionModel has another forward pass"):
        build_vision_model(weights, geometry)
    for change, words in (
        (weights | {"post_layernorm.bias": torch.zeros(17)}, r"post_layernorm.bias is \(17,\), the base's \(16,\)"),
        ({name: weights[name] for name in weights if "fc1" not in name}, "fc1.bias' is in one of them only"),
    ):
        with pytest.raises(ModelError, match=words):
            build_encoder(change, geometry, clip)
    with pytest.raises(ModelError, match=r"its activation is gelu, the base's quick_gelu"):
        build_encoder(weights, geometry.model_copy(update={"hidden_act": "gelu"}), clip)
    write_random_clip(tmp_path / "base", "small")
    text = (tmp_path / "base/config.json").read_text().replace('"hidden_act"', '"linearised": true, "hidden_act"')
    (tmp_path / "base/config.json").write_text(text)
    with pytest.raises(ModelError, match=r"base: is linearised; a base is what models are expanded around$"):
        build_encoder(weights, geometry, open_base(str(tmp_path / "base")))


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its compiler
def test_compiling_leaves_it_as_it_is(base: Path):
    tower = linearised(base, random_deltas(base, 10), torch.float32)
    assert torch.equal(torch.compile(tower)(PIXELS.float()).pooler_output, tower(PIXELS.float()).pooler_output)
