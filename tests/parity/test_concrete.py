"""concrete against autograd and torch's Adam in float64, and the relaxed Bernoulli distribution it draws from."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from entropy_reference import EntropyReference
from torch import Tensor

import clipfuse.fusion.concrete  # noqa: F401  registers the method
import clipfuse.fusion.entropy as module_of_entropy
from clipfuse.config import parse
from clipfuse.errors import ConfigError
from clipfuse.fusion.concrete import Concrete, SharedMask
from clipfuse.fusion.entropy import entropies
from clipfuse.fusion.forward import Forward
from clipfuse.fusion.lent import Lent
from clipfuse.fusion.merge import look_at, merge
from clipfuse.fusion.merged import Merged
from clipfuse.fusion.random_bits import numpy_draws, torch_draws
from clipfuse.fusion.relaxed import LEVELS, draw_relaxed, logistic_table, mean_of_relaxed
from clipfuse.fusion.streams import Run
from clipfuse.pool import PRETRAINED, HuggingFaceClipVisionPool, pool_from_memory
from clipfuse.testing import TASKS, random_models, write_models
from clipfuse.testing.lender import RandomLender
from clipfuse.testing.models import SMALL

MODELS = random_models(0.3)
BASE = MODELS[PRETRAINED]
SUMS = {name: torch.stack([(MODELS[task][name] - BASE[name]).double() for task in TASKS]).sum(0) for name in BASE}
BATCH = 4
FLAT = "k_proj.bias"
"""Softmax takes no notice of it: its gradient is rounding alone, which Adam makes a step of."""


def merged(**settings: Any) -> Merged:
    tree = {"name": "concrete", "batch": BATCH, **settings}
    return merge(pool_from_memory(MODELS, SMALL), tree, data=RandomLender())


@pytest.fixture
def lent() -> Lent:
    return RandomLender().lend(TASKS, ("val_images",), 0)


@pytest.fixture
def run(lent: Lent) -> Iterator[Run]:
    with Run.open(look_at(pool_from_memory(MODELS, SMALL), threads=2), lent) as run:
        yield run


def noise_of(name: str, step: int) -> Tensor:
    """The logistic noise that a step draws for a parameter, from its definition."""
    count = BASE[name].numel()
    u = (numpy_draws((0, "concrete", step, name), 0, count).astype(np.float64) + 0.5) / LEVELS
    return torch.from_numpy(np.log(u) - np.log1p(-u)).view(BASE[name].shape)


def weights_of(logits: dict[str, Tensor], step: int, cfg: Concrete) -> dict[str, Tensor]:
    """θ0 + coefficient · Σ_k τ_k ⊙ m/mean(m), float64."""
    masks = {name: ((value + noise_of(name, step)) / cfg.temperature).sigmoid() for name, value in logits.items()}
    return {name: BASE[name] + cfg.coefficient * SUMS[name] * mask / mask.mean() for name, mask in masks.items()}


@pytest.mark.parametrize("temperature", [0.5, 0.1, 3.0])
def test_draws_are_of_the_relaxed_bernoulli_distribution(temperature: float):
    logits = torch.linspace(-3, 3, 7).repeat_interleave(20_000)
    found = torch.empty_like(logits)
    draw_relaxed((0, "a"), 0, logits, temperature, found)
    torch.manual_seed(0)
    wanted = torch.distributions.RelaxedBernoulli(torch.tensor(temperature), logits=logits).rsample()
    assert ((found >= 0) & (found <= 1)).all()
    for own, other in zip(found.view(7, -1).sort(1).values, wanted.view(7, -1).sort(1).values, strict=True):
        assert (own - other).abs().mean() < 0.01, "the areas between the distribution functions"
    assert (found.view(7, -1).mean(1) - mean_of_relaxed(logits[::20_000], temperature)).abs().max() < 0.01


def test_draws_depend_on_their_place_alone():
    logits, whole, part = torch.zeros(1000), torch.empty(1000), torch.empty(333)
    draw_relaxed((0, "a"), 0, logits, 0.5, whole)
    draw_relaxed((0, "a"), 500, logits[:333], 0.5, part)
    assert torch.equal(whole[500:833], part)
    draw_relaxed((1, "a"), 500, logits[:333], 0.5, part)
    assert not torch.equal(whole[500:833], part)
    table = logistic_table(torch.device("cpu"))
    assert table.isfinite().all()
    noise = table[torch_draws((0, "a"), 0, 1000, "cpu")]
    assert torch.equal((noise / 0.5).sigmoid(), whole), "as on a device"


def test_the_mean_is_the_integral():
    logits = torch.linspace(-12, 12, 49, dtype=torch.float64)
    odds = logits.exp().unsqueeze(1)
    u = (torch.arange(400_000, dtype=torch.float64) + 0.5) / 400_000
    squares = (odds * u) ** 2  # σ(2(a + log u − log(1−u))) without logarithms
    wanted = (squares / (squares + (1 - u) ** 2)).mean(1)
    torch.testing.assert_close(mean_of_relaxed(logits, 0.5), wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(mean_of_relaxed(logits, 0.02), logits.sigmoid(), atol=1e-3, rtol=0)


def test_the_gradient_is_that_of_autograd(run: Run, lent: Lent):
    cfg = Concrete(batch=BATCH, temperature=0.7, coefficient=0.5)
    forward = Forward(run)
    shared = SharedMask(run.view, cfg, run, forward)
    random = torch.Generator().manual_seed(2)
    for value in shared.logits.values():
        value.copy_(torch.randn(value.shape, generator=random))
    logits = {name: value.double().requires_grad_(True) for name, value in shared.logits.items()}
    EntropyReference(forward, lent, BATCH)(weights_of(logits, 3, cfg), 3).backward()
    shared.spread(3)
    for name, wanted in weights_of(logits, 3, cfg).items():
        torch.testing.assert_close(forward.parameters[name].double(), wanted.detach(), atol=1e-6, rtol=1e-6)
        forward.parameters[name].requires_grad_(True)
    for task in TASKS:
        images = lent.images(task, "val")
        entropies(forward.logits(task, images.pixels(images.rows(3, BATCH)))).mean().backward()
    found = shared.pull_back()
    assert set(found) == set(BASE)
    for name, slope in found.items():
        wanted = logits[name].grad
        assert wanted is not None
        assert (slope - wanted).norm() <= 1e-3 * wanted.norm() + 1e-10, name
        assert abs(slope.double().sum()) < 0.5 * slope.double().abs().sum(), "the mean takes its part away"


def test_ten_steps_are_those_of_autograd(run: Run, lent: Lent):
    cfg = Concrete(batch=BATCH, lr=0.05)
    logits = {name: torch.zeros_like(value).double().requires_grad_(True) for name, value in BASE.items()}
    loss, optimizer = EntropyReference(Forward(run), lent, BATCH), torch.optim.Adam(logits.values(), lr=cfg.lr)
    for step in range(10):
        optimizer.zero_grad()
        loss(weights_of(logits, step, cfg), step).backward()
        optimizer.step()
    found = merged(steps=10, lr=cfg.lr, mask="sample")
    for name, wanted in weights_of({name: value.detach() for name, value in logits.items()}, 10, cfg).items():
        start = weights_of({name: torch.zeros_like(BASE[name])}, 10, cfg)[name]
        if not name.endswith(FLAT):
            moved = (wanted - start).norm()
            assert moved > 0.03 * (wanted - BASE[name]).norm(), "it has moved"
            assert (found.tensors[name] - wanted).norm() <= 2e-2 * moved, name


@pytest.mark.parametrize("mask", ["mean", "sample"])
def test_masks_begin_as_they_are_told(mask: str):
    """With steps too small to matter: a mean that is flat is task arithmetic; a draw is drawn once more."""
    cfg = Concrete(temperature=0.4, initial_logits=-1, coefficient=0.7)
    found = merged(steps=2, lr=1e-12, mask=mask, temperature=0.4, initial_logits=-1.0, coefficient=0.7)
    flat = {name: torch.full_like(value, -1).double() for name, value in BASE.items()}
    drawn = weights_of(flat, 2, cfg)
    for name, base in BASE.items():
        wanted = drawn[name] if mask == "sample" else base + 0.7 * SUMS[name]
        torch.testing.assert_close(found.tensors[name].double(), wanted, atol=1e-6, rtol=1e-6)


def test_entropy_goes_down():
    rows = merged(steps=25, lr=0.3, batch=12, coefficient=1.0).files["entropy.csv"].splitlines()[1:]
    sums = [sum(map(float, row.split(",")[1:])) for row in rows]
    assert sum(sums[-5:]) < 0.9 * sum(sums[:5])


@pytest.mark.parametrize("then", ["task", "layer"])
def test_adamerging_follows_on_masked_task_vectors(then: str):
    found = merged(steps=2, lr=0.1, then=then, ada_steps=3)
    alone = merged(steps=2, lr=0.1)
    assert f'"grain": "{then}"' in found.files["coefficients.json"]
    assert '"method": "concrete"' in found.files["coefficients.json"]
    assert len(found.files["entropy_adamerging.csv"].splitlines()) == 4
    assert found.recipe["measured"] == {"concrete.steps": 2, "concrete.adamerging_steps": 3}
    assert any(not torch.equal(found.tensors[name], alone.tensors[name]) for name in BASE)
    still = merged(steps=2, lr=1e-12, then=then, ada_steps=1, mask="sample")
    drawn = weights_of({name: torch.zeros_like(value) for name, value in BASE.items()}, 2, Concrete())
    for name, wanted in drawn.items():
        torch.testing.assert_close(still.tensors[name].double(), wanted, atol=1e-6, rtol=1e-6)


def test_other_seeds_draw_other_masks():
    first, other = (
        merge(
            pool_from_memory(MODELS, SMALL),
            {"name": "concrete", "steps": 1, "mask": "sample"},
            seed=seed,
            data=RandomLender(),
        )
        for seed in (0, 1)
    )
    assert not torch.equal(first.tensors["post_layernorm.bias"], other.tensors["post_layernorm.bias"])


@pytest.mark.parametrize("stop", [1, 4, 5, 6])
def test_an_interrupted_merge_goes_on_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int):
    """In the first half, after its last step, and in the second, where AdaMerging is."""
    folders = write_models(MODELS, tmp_path)
    settings = {"name": "concrete", "steps": 4, "batch": 2, "lr": 0.05, "then": "task", "ada_steps": 3}

    def merge_files() -> Merged:
        pool = HuggingFaceClipVisionPool.from_tree({"models": folders})
        return merge(pool, settings, data=RandomLender())

    whole, seen = merge_files(), []

    def counts(logits: Tensor) -> Tensor:
        seen.append(len(logits))
        if len(seen) == 3 * stop - 1:
            os.kill(os.getpid(), signal.SIGINT)
        return entropies(logits)

    monkeypatch.setattr(module_of_entropy, "entropies", counts)
    with pytest.raises(KeyboardInterrupt):
        merge_files()
    again = merge_files()
    for name, tensor in whole.tensors.items():
        assert torch.equal(again.tensors[name], tensor), name
    assert dict(again.files) == dict(whole.files)


@pytest.mark.parametrize(
    "odd", [{"temperature": 0.0}, {"mask": "discrete"}, {"then": "tasks"}, {"ada_steps": 0}, {"initial_logits": 40.0}]
)
def test_bad_settings_are_named(odd: dict):
    with pytest.raises(ConfigError, match=next(iter(odd))):
        parse(Concrete, odd, "method")
