"""ada_svd against a routed tower in float64, all layers at once, with LAPACK's singular vectors."""

from collections.abc import Callable

import pytest
import torch
from references import Models
from torch import Tensor, nn

from clipfuse.checkpoints.geometry import Geometry
from clipfuse.errors import ConfigError
from clipfuse.fusion import streams, walk
from clipfuse.fusion.ada_svd import AdaSvd, ada_svd
from clipfuse.fusion.kept import Kept
from clipfuse.fusion.lent import Lent
from clipfuse.fusion.merge import look_at, merge
from clipfuse.fusion.streams import Run
from clipfuse.fusion.walk import Walk
from clipfuse.models.build import build_vision_model
from clipfuse.pool.model_pool import pool_from_memory
from clipfuse.testing import TASKS, random_models
from clipfuse.testing.lender import RandomLender

BASE, IMAGES, K = "_pretrained_", 8, 3
TINY = Geometry(
    hidden_size=32, intermediate_size=70, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=8
)


@pytest.fixture(autouse=True)
def several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pictures of TINY's five tokens each."""
    monkeypatch.setattr(walk, "TOKENS", 17)


@pytest.fixture
def models() -> Models:
    """Singular values of the task vectors well apart, so that which of them lead is no chance; in one layer only two."""
    found = random_models(0.3, spread=0.02, geometry=TINY)
    for task in TASKS:
        for name, base in found[BASE].items():
            if name.startswith("encoder.layers.") and base.ndim == 2:
                u, s, vh = torch.linalg.svd(found[task][name] - base, full_matrices=False)
                s *= 0.9 ** torch.arange(len(s))
                s[2 if name.startswith("encoder.layers.2.mlp.") else len(s) :] = 0
                found[task][name] = base + u * s @ vh
    return found


def merged(models: Models, geometry: Geometry = TINY, **settings):
    named = {"name": "ada_svd", "images": IMAGES, "k": K} | settings
    return merge(pool_from_memory(models, geometry), named, data=RandomLender(geometry))


class Routed(nn.Module):
    """y = W0 x + b0 + Σ_i r_i(x) (τ_i x + δb_i)."""

    def __init__(self, base: nn.Linear, weights: Tensor, biases: Tensor, k: int):
        super().__init__()
        self.base, self.weights, self.biases = base, weights, biases
        _, s, vh = torch.linalg.svd(weights, full_matrices=False)
        self.gates = (vh * (s > 1e-5 * s[:, :1])[..., None])[:, :k]
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        shares = torch.einsum("bti,eki->btek", x, self.gates).norm(dim=-1).softmax(-1)
        self.seen.append(shares.flatten(0, 1))
        own = torch.einsum("bti,eoi->bteo", x, self.weights) + self.biases
        return self.base(x) + (shares[..., None] * own).sum(2)


def by_hand(models: Models, k: int, tasks: tuple[str, ...] = TASKS) -> dict[str, Tensor]:
    """Δ of every parameter."""
    tower = build_vision_model(models[BASE], TINY, torch.float64)
    names = [name for name, part in tower.named_modules() if isinstance(part, nn.Linear)]
    deltas = {
        name: torch.stack([models[task][name].double() - base for task in tasks]) for name, base in models[BASE].items()
    }
    for name in names:
        routed = Routed(tower.get_submodule(name), deltas[f"{name}.weight"], deltas[f"{name}.bias"], k)
        tower.set_submodule(name, routed)
    lent = RandomLender(TINY).lend(tasks, ("train_images",), 0)
    with torch.no_grad():
        for task in tasks:
            images = lent.images(task, "train")
            tower(pixel_values=images.pixels(images.choice(IMAGES)).double())
    found = {name: torch.zeros_like(base, dtype=torch.float64) for name, base in models[BASE].items()}
    for name in names:
        mean = torch.cat(tower.get_submodule(name).seen).mean(0)
        for part in ("weight", "bias"):
            found[f"{name}.{part}"] = torch.einsum("e,e...->...", mean, deltas[f"{name}.{part}"])
    return found


@pytest.mark.parametrize("k", [1, 3, 32])
def test_every_parameter_of_a_tower(models: Models, k: int):
    found = merged(models, k=k).tensors
    for name, wanted in by_hand(models, k).items():
        if not wanted.any():
            assert torch.equal(found[name], models[BASE][name]), name
        else:
            apart = found[name].double() - models[BASE][name] - wanted
            assert apart.norm() <= 3e-5 * wanted.norm(), name


def test_shares_are_no_plain_mean(models: Models):
    """Else the comparison above would prove nothing about the gates."""
    wanted, name = by_hand(models, K), "encoder.layers.1.mlp.fc1.weight"
    mean = torch.stack([models[task][name].double() - models[BASE][name] for task in TASKS]).mean(0)
    assert (wanted[name] - mean).norm() > 1e-3 * mean.norm()


def test_one_expert_gives_its_linears(models: Models):
    found = merged({BASE: models[BASE], "digits": models["digits"]}).tensors
    for name, base in models[BASE].items():
        linear = name.startswith("encoder.layers.") and "norm" not in name
        torch.testing.assert_close(found[name], models["digits"][name] if linear else base, rtol=0, atol=3e-7)


def test_equal_experts_give_their_linears(models: Models):
    one = merged({BASE: models[BASE], "digits": models["digits"]}).tensors
    three = merged({BASE: models[BASE]} | dict.fromkeys(TASKS, models["digits"])).tensors
    for name, tensor in one.items():
        torch.testing.assert_close(three[name], tensor, rtol=0, atol=1e-6)


def test_an_expert_that_moved_nothing_has_an_even_share_of_small_inputs(models: Models):
    """‖V_iᵀx‖ of no directions is 0, whatever x; with one more of these, shares only go down."""
    models["roads"] = models[BASE]
    found = merged(models).tensors
    name = "encoder.layers.0.self_attn.q_proj.weight"
    moved = torch.stack([models[task][name] - models[BASE][name] for task in ("digits", "signs")])
    gram = torch.einsum("aoi,boi->ab", moved, moved)
    shares = torch.linalg.solve(gram, torch.einsum("aoi,oi->a", moved, found[name] - models[BASE][name]))
    assert (shares > 1 / 3).all()
    assert shares.sum() < 1


def test_factorisations_are_counted(models: Models):
    assert merged(models).recipe["measured"]["spectra.factorisations"] == 3 * 6 * 3


@pytest.mark.parametrize("stop", [3, 4])
def test_an_interrupted_run_goes_on_with_the_same_bits(models: Models, monkeypatch: pytest.MonkeyPatch, stop: int):
    """Three layers of three tasks are nine steps; the state is that after `stop` of them."""
    monkeypatch.setattr(streams, "SAVE_SECONDS", -1.0)
    view = look_at(pool_from_memory(models, TINY), None, None, "cpu", None)

    def run(kept: Kept) -> tuple[dict[str, Tensor], dict[str, int], Lent]:
        lent = RandomLender(TINY).lend(TASKS, ("train_images",), 0)
        with Run.open(view, lent, kept) as opened:
            found = {name: delta.clone() for name, delta in ada_svd(view, AdaSvd(images=IMAGES, k=K), opened)}
            return found, dict(opened.tally), lent

    wanted, counts, _ = run(Kept())
    calls, original = [0], Walk.inputs

    def inputs(self: Walk, task: str, layer: int) -> Callable:
        calls[0] += 1
        if calls[0] == stop + 1:
            raise KeyboardInterrupt
        return original(self, task, layer)

    monkeypatch.setattr(Walk, "inputs", inputs)
    kept = Kept("a merge")
    with pytest.raises(KeyboardInterrupt):
        run(kept)
    calls[0] = 100
    found, again, lent = run(kept)
    assert calls[0] - 100 == 9 - stop
    assert again == counts
    assert all(torch.equal(found[name], delta) for name, delta in wanted.items())
    assert {row["images"] for row in lent.ledger} == {IMAGES}
    kept.clear()


@pytest.mark.parametrize("odd", [{"images": 0}, {"k": 0}, {"gate_k": 16}])
def test_bad_settings_are_named(models: Models, odd: dict):
    with pytest.raises(ConfigError, match=next(iter(odd))):
        merged(models, **odd)
