"""adarank against autograd, with its own straight-through threshold, and torch's Adam in float64."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from entropy_reference import EntropyReference
from torch import Tensor

import clipfuse.fusion.adarank  # noqa: F401  registers the method
import clipfuse.fusion.entropy as module_of_entropy
from clipfuse.config import parse
from clipfuse.errors import ConfigError
from clipfuse.fusion.adarank import MARGIN, Adarank, Triplets
from clipfuse.fusion.entropy import entropies
from clipfuse.fusion.forward import Forward
from clipfuse.fusion.lent import Lent
from clipfuse.fusion.merge import look_at, merge
from clipfuse.fusion.merged import Merged
from clipfuse.fusion.streams import Run
from clipfuse.pool import PRETRAINED, HuggingFaceClipVisionPool, pool_from_memory
from clipfuse.testing import TASKS, random_models, write_models
from clipfuse.testing.lender import RandomLender
from clipfuse.testing.models import SMALL

MODELS = random_models(0.3)
BASE = MODELS[PRETRAINED]
DELTAS = {name: torch.stack([(MODELS[task][name] - BASE[name]).double() for task in TASKS]) for name in BASE}
MATRICES = [name for name in BASE if name.startswith("encoder.layers.") and BASE[name].ndim == 2]
BATCH = 4
FLAT = "k_proj.bias"
"""Softmax takes no notice of it: its gradient is rounding alone, which Adam makes a step of."""


def merged(models: dict[str, dict[str, Tensor]] = MODELS, **settings: Any) -> Merged:
    tree = {"name": "adarank", "batch": BATCH, **settings}
    return merge(pool_from_memory(models, SMALL), tree, data=RandomLender())


def ranks(found: Merged) -> dict[str, list[int]]:
    """`ranks.csv`: triplets and merged ones of each expert, by matrix."""
    head, *rows = (line.split(",") for line in found.files["ranks.csv"].splitlines())
    assert head == ["parameter", "triplets", *TASKS]
    return {name: [int(cell) for cell in cells] for name, *cells in rows}


@pytest.fixture
def lent() -> Lent:
    return RandomLender().lend(TASKS, ("val_images",), 0)


@pytest.fixture
def run(lent: Lent) -> Iterator[Run]:
    with Run.open(look_at(pool_from_memory(MODELS, SMALL), threads=2), lent) as run:
        yield run


class Reference:
    """The merge as the paper has it, float64, through autograd."""

    def __init__(self, around: str, share: float, init: float):
        mean = {name: rows.mean(0) if around == "mean" else torch.zeros_like(rows[0]) for name, rows in DELTAS.items()}
        self.start = {name: BASE[name] + mean[name] for name in BASE}
        self.own = {name: DELTAS[name] - mean[name] for name in BASE}
        self.factors = {name: torch.full((3,), init).double().requires_grad_(True) for name in BASE}
        self.parts = {name: torch.linalg.svd(self.own[name], full_matrices=False) for name in MATRICES}
        self.logits = {name: torch.full(parts[1].shape, 0.1).double() for name, parts in self.parts.items()}
        for logits in self.logits.values():
            logits[:, int(share * logits.shape[1]) :] *= -1
            logits.requires_grad_(True)

    def weights(self) -> dict[str, Tensor]:
        found = {}
        for name, start in self.start.items():
            own = self.own[name]
            if name in self.parts:
                u, s, vh = self.parts[name]
                soft = (self.logits[name] / 10).sigmoid()
                hard = (soft > 0.5).double()
                own = u @ torch.diag_embed((hard - soft).detach() * s + soft * s) @ vh
            found[name] = start + torch.tensordot(self.factors[name], own, 1)
        return found


@pytest.mark.parametrize("around", ["base", "mean"])
def test_the_gradient_is_that_of_autograd(run: Run, lent: Lent, around: str):
    init = 0.7
    cfg = Adarank.model_validate({"batch": BATCH, "around": around, "rank_fraction": 0.5, "init": init})
    forward, reference = Forward(run), Reference(around, 0.5, init)
    EntropyReference(forward, lent, BATCH)(reference.weights(), 2).backward()
    triplets = Triplets(run.view, cfg, run, forward)
    triplets.spread(2)
    for name, wanted in reference.weights().items():
        torch.testing.assert_close(forward.parameters[name].double(), wanted.detach(), atol=1e-5, rtol=1e-5)
        forward.parameters[name].requires_grad_(True)
    for task in TASKS:
        images = lent.images(task, "val")
        entropies(forward.logits(task, images.pixels(images.rows(2, BATCH)))).mean().backward()
    found = triplets.pull_back()
    assert set(found) == {f"logits {name}" for name in MATRICES} | {"coefficients"}
    factors = torch.stack([grad for name in triplets.names if (grad := reference.factors[name].grad) is not None])
    assert (found["coefficients"] - factors).norm() <= 1e-3 * factors.norm()
    for name in MATRICES:
        wanted = reference.logits[name].grad
        assert wanted is not None
        assert wanted.norm() > 0
        assert (found[f"logits {name}"] - wanted).norm() <= 1e-3 * wanted.norm(), name


@pytest.mark.parametrize(("around", "share", "init"), [("base", 1.0, 0.3), ("mean", 0.16, 2.3)])
def test_fifteen_steps_are_those_of_autograd(run: Run, lent: Lent, around: str, share: float, init: float):
    """Of a size at which triplets change sides from the third step on."""
    lr, reference = 0.04, Reference(around, share, init)
    loss = EntropyReference(Forward(run), lent, BATCH)
    optimizer = torch.optim.Adam([*reference.factors.values(), *reference.logits.values()], lr=lr)
    for step in range(15):
        optimizer.zero_grad()
        loss(reference.weights(), step).backward()
        optimizer.step()
    found = merged(around=around, steps=15, lr=lr)
    counts, changed = ranks(found), 0
    for name in MATRICES:
        logits = reference.logits[name].detach()
        changed += int((logits[:, : int(share * logits.shape[1])] <= 0).sum())
        wanted = [logits.shape[1], *(logits > 0).sum(1).tolist()]
        assert all(abs(own - other) <= 1 for own, other in zip(counts[name], wanted, strict=True)), name
    assert changed > 50
    for name, wanted in reference.weights().items():
        if not name.endswith(FLAT):
            wanted = wanted.detach()
            assert (found.tensors[name] - wanted).norm() <= 3e-2 * (wanted - BASE[name]).norm(), name


def test_around_the_base_it_begins_at_task_arithmetic():
    found = merged(steps=1, lr=1e-12)
    assert found.recipe["measured"]["adarank.merged"] == found.recipe["measured"]["adarank.triplets"] == 12 * 3 * 64
    for name, deltas in DELTAS.items():
        torch.testing.assert_close(found.tensors[name].double(), BASE[name] + 0.3 * deltas.sum(0), atol=1e-6, rtol=1e-6)


def test_around_the_mean_it_begins_at_cart():
    found = merged(steps=1, lr=1e-12, around="mean", rank_fraction=0.25)
    wanted = merge(MODELS, {"name": "cart", "rank_fraction": 0.25, "spread": 2.3})
    assert set(ranks(found)) == set(MATRICES)
    assert all(row == [64, 16, 16, 16] for row in ranks(found).values())
    for name, tensor in wanted.tensors.items():
        if name in MATRICES or BASE[name].ndim != 2:
            torch.testing.assert_close(found.tensors[name], tensor, atol=2e-6, rtol=1e-5)
        else:
            torch.testing.assert_close(
                found.tensors[name].double(), BASE[name] + DELTAS[name].mean(0), atol=1e-6, rtol=0
            )


def test_no_triplet_changes_sides_before_the_margin_is_crossed():
    before, after = (merged(steps=steps, lr=0.01, learn_coefficients=False) for steps in (9, 14))
    assert MARGIN == 0.1
    assert before.recipe["measured"]["adarank.merged"] == 12 * 3 * 64
    assert after.recipe["measured"]["adarank.merged"] < 12 * 3 * 64


def test_coefficients_are_learned_unless_told_otherwise():
    found, fixed = merged(steps=3, lr=0.01), merged(steps=3, lr=0.01, learn_coefficients=False)
    assert '"method": "adarank"' in found.files["coefficients.json"]
    assert set(fixed.files) == {"entropy.csv", "ranks.csv"}
    for name, deltas in DELTAS.items():
        torch.testing.assert_close(fixed.tensors[name].double(), BASE[name] + 0.3 * deltas.sum(0), atol=1e-6, rtol=1e-6)
    assert any((found.tensors[name] - fixed.tensors[name]).abs().max() > 1e-4 for name in BASE)


def test_an_expert_of_low_rank_has_no_more_to_offer():
    """Triplets of no size change nothing, whichever side they are on."""
    few = torch.Generator().manual_seed(0)
    low = {name: BASE[name] + 0.0 for name in BASE}
    for name in MATRICES:
        rows, columns = BASE[name].shape
        low[name] += 0.02 * torch.randn(rows, 2, generator=few) @ torch.randn(2, columns, generator=few)
    found = merged(MODELS | {"digits": low}, steps=12, lr=0.02)
    for tensor in found.tensors.values():
        assert tensor.isfinite().all()


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_an_interrupted_merge_goes_on_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int):
    folders = write_models(MODELS, tmp_path)
    settings = {"name": "adarank", "steps": 5, "batch": 2, "lr": 0.05}

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
    assert len(seen) == 15, "no step was made twice"
    for name, tensor in whole.tensors.items():
        assert torch.equal(again.tensors[name], tensor), name
    assert dict(again.files) == dict(whole.files)


@pytest.mark.parametrize("odd", [{"around": "zero"}, {"rank_fraction": 0.0}, {"rank_fraction": 2.0}, {"steps": 0}])
def test_bad_settings_are_named(odd: dict):
    with pytest.raises(ConfigError, match=next(iter(odd))):
        parse(Adarank, odd, "method")
