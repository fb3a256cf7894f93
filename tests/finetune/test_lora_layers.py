"""LoRA layers against their formulae in float64, against merged weights, and against the adapters that they become."""

from collections.abc import Sequence
from math import sqrt
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from clipfuse.checkpoints.adapter_files import write_adapter
from clipfuse.checkpoints.applied import applied
from clipfuse.checkpoints.checkpoint import open_checkpoint
from clipfuse.errors import ConfigError
from clipfuse.finetune.lora_layers import LoraLinear, add_lora, merged_weights
from clipfuse.models.build import build_vision_model
from clipfuse.models.tower import Tower, open_tower
from tests.random_clip import write_random_clip

TARGETS = ("q_proj", "self_attn.out_proj", "fc1")
MODULES = sorted(
    f"encoder.layers.{n}.{m}" for n in (0, 1) for m in ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1")
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Tower:
    folder = tmp_path_factory.mktemp("clip") / "base"
    write_random_clip(folder, "small")
    return open_tower(str(folder))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(base: Tower) -> nn.Module:
    return build_vision_model(base.checkpoint, base.geometry)


def add(
    tower: nn.Module,
    targets: Sequence[str] = TARGETS,
    rank: int = 3,
    dropout: float = 0.0,
    linearised: bool = False,
    seed: int = 0,
) -> dict[str, LoraLinear]:
    return add_lora(tower, rank, 6.0, dropout, targets, linearised, seeded(seed))


def pixels(seed: int = 1) -> Tensor:
    return torch.randn(4, 3, 32, 32, generator=seeded(seed))


def pooled(tower: nn.Module) -> Tensor:
    with torch.no_grad():
        return tower.eval()(pixel_values=pixels()).pooler_output


def train(tower: nn.Module, steps: int = 5) -> None:
    """A few steps towards random outputs, with what takes gradients."""
    optimizer = torch.optim.SGD([p for p in tower.parameters() if p.requires_grad], lr=0.2)
    tower.train()
    for step in range(steps):
        found = tower(pixel_values=pixels(step)).pooler_output
        (found - torch.randn(found.shape, generator=seeded(50 + step))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("linearised", [False, True])
def test_trained_layers_merged_weights_and_the_adapter_are_one_model(base: Tower, tmp_path: Path, linearised: bool):
    tower = build(base)
    layers = add(tower, dropout=0.1, linearised=linearised)
    begun = pooled(tower)
    initial = {name: (layer.A.detach().clone(), layer.B.detach().clone()) for name, layer in layers.items()}
    assert torch.equal(begun, pooled(build(base)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        train(tower)
    trained = pooled(tower)
    assert apart(begun, trained) > 0.05
    merged = merged_weights(layers)
    assert list(merged) == [f"{name}.weight" for name in MODULES]
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in merged.values())
    assert apart(pooled(build_vision_model({**base.checkpoint, **merged}, base.geometry)), trained) < 1e-6
    factors = {name: (layer.A, layer.B) for name, layer in layers.items()}
    write_adapter(
        tmp_path, factors, rank=3, alpha=6.0, dropout=0.1, targets=TARGETS, base_ref=base.ref,
        initial=initial if linearised else None,
    )  # fmt: skip
    whole = applied(base.checkpoint, open_checkpoint(tmp_path, "adapter", base.checkpoint))
    assert apart(pooled(build_vision_model(whole, base.geometry)), trained) < 1e-6


@pytest.mark.parametrize("linearised", [False, True])
def test_only_factors_learn(base: Tower, linearised: bool):
    tower = build(base)
    layers = add(tower, linearised=linearised)
    learning = {name for name, parameter in tower.named_parameters() if parameter.requires_grad}
    assert learning == {f"{name}.{factor}" for name in MODULES for factor in ("B" if linearised else "AB")}
    initial = {name: layer.A.detach().clone() for name, layer in layers.items()}
    train(tower)
    for name, layer in layers.items():
        assert layer.B.any()
        assert torch.equal(layer.A, initial[name]) is linearised
    frozen = {n.replace(".base.", "."): p for n, p in tower.named_parameters() if not n.endswith((".A", ".B"))}
    assert frozen.keys() == base.checkpoint.keys()
    for name, parameter in frozen.items():
        assert parameter.grad is None
        assert torch.equal(parameter, base.checkpoint[name]), name


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch's own, on the first derivative
def test_a_layer_is_its_formula():
    linear = nn.Linear(7, 5).double()
    x = torch.randn(2, 4, 7, dtype=torch.float64, generator=seeded(1))
    plain, straight = (LoraLinear(linear, 2, 3.0, 0.0, linearised, seeded(0)) for linearised in (False, True))
    b = torch.randn(5, 2, dtype=torch.float64, generator=seeded(2))
    for layer in (plain, straight):
        layer.B.data.copy_(b)

    def whole(a: Tensor, b: Tensor) -> Tensor:
        return x @ linear.weight.T + linear.bias + 1.5 * (x @ a.T) @ b.T

    torch.testing.assert_close(plain(x), whole(plain.A, b))
    begun = (straight.A.detach(), torch.zeros_like(b))
    derived = torch.func.jvp(whole, begun, (torch.ones_like(straight.A), b))  # A moves: B0 = 0 hides it
    torch.testing.assert_close(straight(x), derived[0] + derived[1])


def test_dropout_is_of_the_factors_input_in_training_alone(base: Tower):
    tower = build(base)
    layers = add(tower, dropout=0.5)
    assert not any(layer.training for layer in layers.values())  # as the tower was
    for layer in layers.values():
        layer.B.data.fill_(0.1)
    assert torch.equal(pooled(tower), pooled(tower))
    layer = layers[MODULES[0]]
    x = torch.eye(layer.A.shape[1])
    added = (x @ layer.A.T * 2 @ layer.B.T).detach()  # a row for each input
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        found = layer.train()(x) - layer.base(x)
    kept = found.abs().sum(1) > 1e-6
    assert 0 < int(kept.sum()) < len(x)
    torch.testing.assert_close(found, kept[:, None] * 2 * added)


def test_initial_factors(base: Tower):
    first, same, other = (
        add(build(base), targets, seed=seed) for targets, seed in ((TARGETS, 0), (TARGETS[::-1], 0), (TARGETS, 1))
    )
    assert list(first) == list(same) == MODULES
    for name, layer in first.items():
        assert torch.equal(layer.A, same[name].A)
        assert not torch.equal(layer.A, other[name].A)
        bound = 1 / sqrt(layer.A.shape[1])
        assert 0.8 * bound < float(layer.A.detach().abs().max()) <= bound
        assert abs(float(layer.A.detach().std()) / (bound / sqrt(3)) - 1) < 0.3
        assert not layer.B.any()
        assert layer.scaling == 2.0
    assert not torch.equal(first[MODULES[0]].A, first[MODULES[3]].A)


def test_names_are_canonical_in_a_tower_with_a_prefix(base: Tower):
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**base.geometry.model_dump()))
    layers = add(model, (*TARGETS, "0.mlp.fc2", "encoder.layers.1.self_attn.v_proj"))
    assert list(layers) == sorted([*MODULES, "encoder.layers.0.mlp.fc2", "encoder.layers.1.self_attn.v_proj"])
    assert model.vision_model.get_submodule(MODULES[0]) is layers[MODULES[0]]
    assert type(model.visual_projection) is nn.Linear
    assert not model.visual_projection.weight.requires_grad
    with pytest.raises(ConfigError, match="unknown linear layer 'visual_projection'"):
        add(model, ["visual_projection"])


@pytest.mark.parametrize(
    ("targets", "rank", "words"),
    [
        (["q_proj", "qproj"], 3, r"target_modules: unknown linear layer 'qproj'; did you mean 'q_proj'\? Known: fc1, "),
        (["attn.q_proj"], 3, "'attn.q_proj'; did you mean 'self_attn.q_proj'"),
        (["proj"], 3, "unknown linear layer 'proj'"),
        (["patch_embedding"], 3, "unknown linear layer 'patch_embedding'"),
        ([], 3, "target_modules: takes at least one name"),
        (["fc1"], 17, r"rank: takes 1 to 16, the smaller side of encoder\.layers\.0\.mlp\.fc1 \(found 17\)"),
        (["fc1"], 0, r"rank: takes 1 to 16, .* \(found 0\)"),
    ],
)
def test_what_does_not_fit_changes_nothing(base: Tower, targets: Sequence[str], rank: int, words: str):
    tower = build(base)
    with pytest.raises(ConfigError, match=words) as caught:
        add(tower, targets, rank)
    assert "\n" not in str(caught.value)
    assert not any(isinstance(module, LoraLinear) for module in tower.modules())
    assert all(parameter.requires_grad for parameter in tower.parameters())
