"""regmean and regmean_plusplus against whole towers in float64 with a hook on every Linear, and plain solves."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from references import Models
from torch import Tensor, nn

from clipfuse.checkpoints.geometry import Geometry
from clipfuse.errors import ConfigError, PoolError
from clipfuse.fusion import streams, walk
from clipfuse.fusion.kept import Kept
from clipfuse.fusion.lent import Lent
from clipfuse.fusion.merge import look_at, merge
from clipfuse.fusion.regmean import Regmean, RegmeanPlusplus, regmean, regmean_plusplus
from clipfuse.fusion.streams import Run
from clipfuse.fusion.walk import Walk
from clipfuse.models.build import build_vision_model
from clipfuse.pool.model_pool import pool_from_memory
from clipfuse.stats.input_grams import Gram
from clipfuse.testing import TASKS, random_models
from clipfuse.testing.lender import RandomLender

BASE, STEM = "_pretrained_", ("embeddings.", "pre_layrnorm.")
IMAGES, SHRINK, DAMPING = 8, 0.95, 1e-6
TINY = Geometry(
    hidden_size=32, intermediate_size=70, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=8
)


@pytest.fixture
def models() -> Models:
    return made(TINY)


@pytest.fixture(autouse=True)
def several_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three pictures of TINY's five tokens each."""
    monkeypatch.setattr(walk, "TOKENS", 17)


def made(geometry: Geometry) -> Models:
    return random_models(0.3, spread=0.02, geometry=geometry)


def merged(models: Models, method: str, geometry: Geometry = TINY, lender: RandomLender | None = None, **options):
    pool = pool_from_memory(models, geometry)
    settings = {"name": method, "images": IMAGES} | options.pop("settings", {})
    return merge(pool, settings, data=lender or RandomLender(geometry), **options)


def pixels(geometry: Geometry, task: str, images: int = IMAGES) -> Tensor:
    """Those that the method looks at, float64."""
    found = RandomLender(geometry).lend(TASKS, ("train_images",), 0).images(task, "train")
    return found.pixels(found.choice(images)).double()


def grams(weights: dict[str, Tensor], geometry: Geometry, images: Tensor) -> dict[str, Tensor]:
    """XᵀX/n of every Linear's input in a tower of these weights."""
    tower = build_vision_model(weights, geometry, torch.float64)
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def note(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            rows = args[0].flatten(0, -2)
            found[name] = rows.T @ rows / len(rows)

        return note

    for name, part in tower.named_modules():
        if isinstance(part, nn.Linear):
            part.register_forward_pre_hook(hook(f"{name}.weight"))
    with torch.no_grad():
        tower(pixel_values=images)
    return found


def solved(weights: list[Tensor], squares: list[Tensor], shrink: float, damping: float = DAMPING) -> Tensor:
    """(Σ W_i G_i)(Σ G_i)⁻¹, the paper's form."""
    changed = []
    for square in squares:
        diagonal = square.diagonal()
        changed.append(
            shrink * square + torch.diag((1 - shrink) * diagonal) + damping * diagonal.mean() * torch.eye(len(square))
        )
    product = sum(weight.double() @ square for weight, square in zip(weights, changed, strict=True))
    return torch.linalg.solve(sum(changed), product, left=False)


def mean_of(models: Models, name: str) -> Tensor:
    return torch.stack([tensors[name].double() for task, tensors in models.items() if task != BASE]).mean(0)


def by_hand(models: Models, geometry: Geometry, shrink: float) -> dict[str, Tensor]:
    found = {name: mean_of(models, name) for name in models[BASE]}
    squares = [grams(models[task], geometry, pixels(geometry, task)) for task in TASKS]
    for name in squares[0]:
        found[name] = solved([models[task][name] for task in TASKS], [each[name] for each in squares], shrink)
    return found


def by_hand_through_the_merged(models: Models, geometry: Geometry, shrink: float) -> dict[str, Tensor]:
    """A whole tower of merged layers below, the expert's own from there, for every layer and expert."""
    found = {name: mean_of(models, name) for name in models[BASE]}
    for layer in range(geometry.num_hidden_layers):
        below = STEM + tuple(f"encoder.layers.{number}." for number in range(layer))
        squares = []
        for task in TASKS:
            mixed = {n: found[n] if n.startswith(below) else models[task][n].double() for n in found}
            squares.append(grams(mixed, geometry, pixels(geometry, task)))
        for name in squares[0]:
            if name.startswith(f"encoder.layers.{layer}."):
                found[name] = solved([models[task][name] for task in TASKS], [s[name] for s in squares], shrink)
    return found


def check_near(found: dict[str, Tensor], wanted: dict[str, Tensor], base: dict[str, Tensor]) -> None:
    for name, tensor in wanted.items():
        moved, apart = tensor - base[name], found[name].double() - tensor
        assert apart.norm() <= 5e-5 * moved.norm(), (name, float(apart.norm() / moved.norm()))


@pytest.mark.parametrize("shrink", [0.95, 0.4])
@pytest.mark.parametrize(
    ("method", "reference"), [("regmean", by_hand), ("regmean_plusplus", by_hand_through_the_merged)]
)
def test_every_parameter_of_a_tower(models: Models, method: str, reference: Callable, shrink: float):
    found = dict(merged(models, method, settings={"shrink": shrink}).tensors)
    check_near(found, reference(models, TINY, shrink), models[BASE])


def test_the_two_differ(models: Models):
    one, other = (by(models, TINY, SHRINK) for by in (by_hand, by_hand_through_the_merged))
    name = "encoder.layers.2.mlp.fc2.weight"
    assert (one[name] - other[name]).norm() > 1e-2 * (one[name] - models[BASE][name]).norm()


def test_one_layer_above_a_common_stem_is_the_same_in_both():
    geometry = TINY.model_copy(update={"num_hidden_layers": 1})
    models = made(geometry)
    for task in TASKS:
        models[task] |= {name: tensor for name, tensor in models[BASE].items() if name.startswith(STEM)}
    one, other = (dict(merged(models, m, geometry).tensors) for m in ("regmean", "regmean_plusplus"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("method", ["regmean", "regmean_plusplus"])
@pytest.mark.parametrize("which", ["one", "equal"])
def test_one_expert_and_equal_ones_are_that_expert(models: Models, method: str, which: str):
    expert = models["digits"]
    pool = (
        {BASE: models[BASE], "digits": expert}
        if which == "one"
        else {BASE: models[BASE]} | dict.fromkeys(TASKS, expert)
    )
    found = merged(pool, method).tensors
    for name, tensor in expert.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=3e-7, msg=name)


@dataclass(frozen=True)
class Alike(RandomLender):
    """The same pictures for everyone."""

    def lend(self, experts, uses, seed: int, base: str | None = None) -> Lent:
        lent = super().lend(experts, uses, seed, base)
        return replace(lent, rows=dict.fromkeys(lent.rows, lent.rows[experts[0], "train"]))


@pytest.mark.parametrize("method", ["regmean", "regmean_plusplus"])
def test_equal_grams_give_the_mean(models: Models, method: str):
    last = "encoder.layers.2.mlp.fc2."
    for task in TASKS:
        models[task] = {n: models[task][n] if n.startswith(last) else t for n, t in models[BASE].items()}
    found = merged(models, method, lender=Alike(TINY), settings={"images": 12}).tensors
    for name, tensor in models[BASE].items():
        wanted = mean_of(models, name).float() if name.startswith(last) else tensor
        torch.testing.assert_close(found[name], wanted, rtol=0, atol=1e-6 * name.startswith(last))


def test_the_last_norm_is_averaged_or_as_in_the_base(models: Models):
    for choice in ("mean", "base"):
        found = merged(models, "regmean_plusplus", settings={"post_layernorm": choice}).tensors
        for name in ("post_layernorm.weight", "post_layernorm.bias"):
            wanted = mean_of(models, name).float() if choice == "mean" else models[BASE][name]
            torch.testing.assert_close(found[name], wanted, rtol=0, atol=1e-6)


def test_inputs_of_zeros_give_the_mean(models: Models):
    """A LayerNorm that gives nothing: the query's Gram matrices are zero for all experts, fc1's for one of them."""
    for task in TASKS:
        models[task] |= {f"encoder.layers.1.layer_norm1.{part}": torch.zeros(32) for part in ("weight", "bias")}
    models["signs"] |= {f"encoder.layers.1.layer_norm2.{part}": torch.zeros(32) for part in ("weight", "bias")}
    found = merged(models, "regmean")
    query, first = (f"encoder.layers.1.{part}.weight" for part in ("self_attn.q_proj", "mlp.fc1"))
    torch.testing.assert_close(found.tensors[query], mean_of(models, query).float(), rtol=0, atol=1e-6)
    others = {BASE: models[BASE]} | {task: models[task] for task in ("digits", "roads")}
    without = merged(others, "regmean").tensors
    torch.testing.assert_close(found.tensors[first], without[first], rtol=0, atol=1e-6)


def test_what_rounding_left_indefinite_is_damped_on_both_sides(models: Models, monkeypatch: pytest.MonkeyPatch):
    original = Gram.whole

    def rounded(self: Gram) -> Tensor:
        found = original(self)
        found.diagonal().sub_(found.diagonal().mean() * 0.9)
        return found

    monkeypatch.setattr(Gram, "whole", rounded)
    pool = {BASE: models[BASE], "digits": models["digits"]}
    found = merged(pool, "regmean", settings={"shrink": 1.0})
    counts = found.recipe["measured"]
    assert counts["regmean.solved"] == 12
    assert counts["regmean.more_damping"] == 12
    for name, tensor in models["digits"].items():
        torch.testing.assert_close(found.tensors[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_moments_that_are_not_finite_are_named(models: Models, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Gram, "whole", lambda self: self.total.fill_(torch.nan))
    with pytest.raises(PoolError, match=r"encoder.layers.0.self_attn.._proj.weight: the second moments .* not finite"):
        merged(models, "regmean")


@pytest.mark.parametrize("method", ["regmean", "regmean_plusplus"])
def test_experts_are_walked_through_the_edits(models: Models, method: str):
    edit = [{"name": "dare", "drop": 0.5}]
    edited = {BASE: models[BASE]}
    for task in TASKS:
        one = {BASE: models[BASE], task: models[task]}
        edited[task] = dict(merge(one, {"name": "task_arithmetic", "scaling_factor": 1.0}, edits=edit).tensors)
    found, wanted = merged(models, method, edits=edit).tensors, merged(edited, method).tensors
    check_near(dict(found), {name: tensor.double() for name, tensor in wanted.items()}, models[BASE])


@pytest.mark.parametrize("function", [regmean, regmean_plusplus])
@pytest.mark.parametrize("stop", [3, 4])
def test_an_interrupted_run_goes_on_with_the_same_bits(
    models: Models, monkeypatch: pytest.MonkeyPatch, function: Callable, stop: int
):
    """Three layers of three experts are nine steps; the state is that after `stop` of them."""
    monkeypatch.setattr(streams, "SAVE_SECONDS", -1.0)
    view = look_at(pool_from_memory(models, TINY), None, None, "cpu", None)
    cfg = (Regmean if function is regmean else RegmeanPlusplus)(images=IMAGES)

    def run(kept: Kept) -> tuple[dict[str, Tensor], dict[str, int], Lent]:
        lent = RandomLender(TINY).lend(TASKS, ("train_images",), 0)
        with Run.open(view, lent, kept) as opened:
            found = {name: delta.clone() for name, delta in function(view, cfg, opened)}
            return found, dict(opened.tally), lent

    wanted, counts, _ = run(Kept())
    calls, original = [0], Walk.load_expert

    def load_expert(self: Walk, part: int, number: int) -> None:
        calls[0] += part >= 0
        if calls[0] == stop + 1:
            raise KeyboardInterrupt
        original(self, part, number)

    monkeypatch.setattr(Walk, "load_expert", load_expert)
    kept = Kept("a merge")
    with pytest.raises(KeyboardInterrupt):
        run(kept)
    calls[0] = 100
    found, again, lent = run(kept)
    assert calls[0] - 100 == 9 - stop
    assert again == counts
    assert all(torch.equal(found[name], delta) for name, delta in wanted.items())
    assert {row["images"] for row in lent.ledger} == {IMAGES}, "what was looked at before is not forgotten"
    kept.clear()


def test_each_picture_is_looked_at_once(models: Models):
    view = look_at(pool_from_memory(models, TINY), None, None, "cpu", None)
    for function, cfg in ((regmean, Regmean(images=IMAGES)), (regmean_plusplus, RegmeanPlusplus(images=99))):
        lent = RandomLender(TINY).lend(TASKS, ("train_images",), 0)
        with Run.open(view, lent) as opened:
            for _ in function(view, cfg, opened):
                pass
        assert [row["passes"] for row in lent.ledger] == [1.0] * 3
        assert [row["images"] for row in lent.ledger] == [min(cfg.images, 12)] * 3


@pytest.mark.parametrize(
    "odd", [{"images": 0}, {"shrink": 1.2}, {"shrink": -0.1}, {"damping": 0.0}, {"post_layernorm": "experts"}]
)
def test_bad_settings_are_named(models: Models, odd: dict):
    with pytest.raises(ConfigError, match=f"method.{next(iter(odd))}"):
        merged(models, "regmean_plusplus", settings=odd)
