"""surgery's modules against autograd and torch's Adam in float64."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from clipfuse.config import parse
from clipfuse.errors import ConfigError
from clipfuse.fusion import feature_modules, streams
from clipfuse.fusion.feature_modules import first_down
from clipfuse.fusion.forward import Forward
from clipfuse.fusion.kept import Kept
from clipfuse.fusion.lent import Lent
from clipfuse.fusion.merge import look_at, open_pool
from clipfuse.fusion.streams import Run
from clipfuse.fusion.surgery import Surgery, learn_module, surgery
from clipfuse.models.per_task import corrected
from clipfuse.order import seed_of
from clipfuse.pool import HuggingFaceClipVisionPool, PoolView
from clipfuse.testing import TASKS, random_models, write_models
from clipfuse.testing.lender import RandomLender

IMAGES, EMBED, RANK, LR = 60, 48, 6, 1e-3


def pairs(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit features of a merged encoder, and of an expert that differs by a common shift and noise."""
    random = torch.Generator().manual_seed(seed)
    own = torch.randn(IMAGES, EMBED, generator=random)
    shift = torch.randn(EMBED, generator=random) + 0.3 * torch.randn(IMAGES, EMBED, generator=random)
    return nn.functional.normalize(own + 1, dim=-1), nn.functional.normalize(own + 1 + shift, dim=-1)


def reference(own: Tensor, wanted: Tensor, rows: Tensor, down: Tensor, lr: float = LR) -> tuple[Tensor, Tensor]:
    """An ordinary loop of torch, float64."""
    first, second = nn.Linear(EMBED, RANK, False).double(), nn.Linear(RANK, EMBED, False).double()
    with torch.no_grad():
        first.weight.copy_(down)
        second.weight.zero_()
    optimizer = torch.optim.Adam([first.weight, second.weight], lr=lr)
    for batch in rows:
        features = own[batch].double()
        loss = nn.functional.l1_loss(features - second(first(features).relu()), wanted[batch].double())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return first.weight.detach(), second.weight.detach()


def drawn(steps: int, batch: int) -> Tensor:
    return torch.randint(IMAGES, (steps, batch), generator=torch.Generator().manual_seed(1))


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("batch", [1, 16])
def test_twenty_steps_of_autograd(batch: int):
    own, wanted = pairs()
    down = first_down(RANK, EMBED, torch.Generator().manual_seed(2))
    found = learn_module(own, wanted, drawn(20, batch), down, LR)
    first, second = reference(own, wanted, drawn(20, batch), down)
    assert distance(first, down.double()) > 1e-2, "they have moved"
    torch.testing.assert_close(found["down"].double(), first, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["up"].double(), second, atol=1e-5, rtol=0)


def test_a_whole_training_comes_as_near_to_the_expert():
    own, wanted = pairs()
    down = first_down(RANK, EMBED, torch.Generator().manual_seed(2))
    module = learn_module(own, wanted, drawn(400, 16), down, LR)
    first, second = reference(own, wanted, drawn(400, 16), down)

    def apart(down: Tensor, up: Tensor) -> float:
        return float((own - (own @ down.T).relu() @ up.T - wanted).abs().mean())

    before = float((own - wanted).abs().mean())
    found, want = apart(**module), apart(first.float(), second.float())
    assert found < 0.7 * before
    assert found == pytest.approx(want, rel=1e-3)


def test_it_begins_where_it_changes_nothing():
    own, wanted = pairs()
    down = first_down(RANK, EMBED, torch.Generator().manual_seed(2))
    assert down.abs().max() <= EMBED**-0.5
    assert down.var() == pytest.approx(1 / (3 * EMBED), rel=0.2)
    module = learn_module(own, wanted, drawn(0, 4), down, LR)
    assert torch.equal(module["down"], down)
    assert not module["up"].any()


def test_where_the_expert_is_the_merged_model_nothing_is_learnt():
    own, _ = pairs()
    down = first_down(RANK, EMBED, torch.Generator().manual_seed(2))
    module = learn_module(own, own, drawn(20, 4), down, LR)
    assert torch.equal(module["down"], down)
    assert not module["up"].any()


@pytest.fixture(scope="module")
def view(tmp_path_factory: pytest.TempPathFactory) -> PoolView:
    folders = write_models(random_models(0.3), tmp_path_factory.mktemp("surgery"))
    return look_at(open_pool(HuggingFaceClipVisionPool.from_tree({"models": folders})), threads=1)


def lent_to(view: PoolView, cfg: Surgery, images: int = 12) -> Lent:
    return RandomLender(images=images).lend(view.tasks, (f"{cfg.images}_images",), view.seed)


def learnt(view: PoolView, cfg: Surgery, lent: Lent, kept: Kept | None = None) -> dict[str, dict[str, Tensor]]:
    """Modules behind a merged encoder that is the base."""
    with Run.open(view, lent, kept) as run:
        found = surgery(view, cfg, run, Forward(run))
        return {task: {name: tensor.clone() for name, tensor in module.items()} for task, module in found.items()}


@torch.no_grad()
def features(view: PoolView, lent: Lent, task: str, cfg: Surgery) -> tuple[Tensor, Tensor, Tensor]:
    """Unit features of all images by base and expert, and the rows that are drawn."""
    with Run.open(view, lent) as run:
        tower, images = Forward(run), lent.images(task, cfg.images)
        pixels = images.pixels(range(images.count))
        own = tower.features(pixels)
        tower.load_expert(view.tasks.index(task))
        rows = torch.tensor([images.rows(step, cfg.batch) for step in range(cfg.steps)])
        return nn.functional.normalize(own, dim=-1), nn.functional.normalize(tower.features(pixels), dim=-1), rows


@pytest.mark.parametrize("images", ["val", "test"])
def test_every_task_learns_from_its_own_expert_and_images(view: PoolView, images: str):
    cfg = Surgery.model_validate({"images": images, "rank": 3, "steps": 6, "batch": 5, "lr": 1e-2})
    lent = lent_to(view, cfg)
    found = learnt(view, cfg, lent)
    assert list(found) == list(TASKS)
    for task, module in found.items():
        own, wanted, rows = features(view, lent, task, cfg)
        assert (own - wanted).abs().max() > 1e-3
        down = first_down(3, own.shape[1], torch.Generator().manual_seed(seed_of(view.seed, task, "surgery")))
        want = learn_module(own, wanted, rows, down, cfg.lr)
        for name, tensor in want.items():
            torch.testing.assert_close(module[name], tensor, atol=1e-4, rtol=0)
        after = (corrected(own, module) - wanted).abs().mean()
        assert after < 0.9 * (own - wanted).abs().mean()


def test_each_image_that_is_drawn_goes_through_each_encoder_once(view: PoolView):
    few, many = Surgery(steps=2, batch=3), Surgery(steps=50, batch=3)
    for cfg, count in ((few, 6), (many, 12)):
        lent = lent_to(view, cfg)
        learnt(view, cfg, lent)
        for row in lent.ledger:
            assert (row["images"], row["passes"], row["split"], row["labels"]) == (count, 1.0, "val", False)


def test_modules_do_not_depend_on_the_size_of_forward_passes(view: PoolView, monkeypatch: pytest.MonkeyPatch):
    cfg = Surgery(steps=3, batch=4)
    whole = learnt(view, cfg, lent_to(view, cfg))
    monkeypatch.setattr(feature_modules, "BATCH", 5)
    parts = learnt(view, cfg, lent_to(view, cfg))
    for task, module in whole.items():
        for name, tensor in module.items():
            torch.testing.assert_close(parts[task][name], tensor, atol=1e-4, rtol=0)


def test_other_seeds_learn_other_modules(view: PoolView):
    cfg = Surgery(steps=1, batch=4)
    first, again = (learnt(view, cfg, lent_to(view, cfg)) for _ in range(2))
    other = learnt(replace(view, seed=1), cfg, lent_to(replace(view, seed=1), cfg))
    for task in TASKS:
        assert torch.equal(first[task]["down"], again[task]["down"])
        assert torch.equal(first[task]["up"], again[task]["up"])
        assert not torch.equal(first[task]["down"], other[task]["down"])
    assert not torch.equal(first["digits"]["down"], first["signs"]["down"])


@pytest.mark.parametrize("stop", [1, 2, 4, 7])
def test_an_interrupted_run_goes_on_with_the_same_bits(view: PoolView, monkeypatch: pytest.MonkeyPatch, stop: int):
    """Three tasks of three batches each; the saved state is that after `stop` of them."""
    monkeypatch.setattr(feature_modules, "BATCH", 5)
    monkeypatch.setattr(streams, "SAVE_SECONDS", -1.0)
    cfg, whole, kept = Surgery(steps=3, batch=4), Kept(), Kept("a merge")
    want = learnt(view, cfg, lent_to(view, cfg), whole)
    seen, original = [], Forward.features

    def features(self: Forward, pixels: Tensor) -> Tensor:
        seen.append(len(pixels))
        if len(seen) == 2 * stop + 1:
            raise KeyboardInterrupt
        return original(self, pixels)

    monkeypatch.setattr(Forward, "features", features)
    with pytest.raises(KeyboardInterrupt):
        learnt(view, cfg, lent_to(view, cfg), kept)
    seen[:] = [0] * 100
    lent = lent_to(view, cfg)
    found = learnt(view, cfg, lent, kept)
    assert len(seen) - 100 == 2 * (9 - stop)
    for task, module in want.items():
        for name, tensor in module.items():
            assert torch.equal(found[task][name], tensor), (task, name)
    assert {row["images"] for row in lent.ledger} == {12}, "what was looked at before is not forgotten"
    kept.clear()


@pytest.mark.parametrize(
    "odd", [{"images": "all"}, {"rank": 0}, {"steps": 0}, {"batch": 0}, {"lr": 0.0}, {"labels": True}]
)
def test_bad_settings_are_named(odd: dict):
    with pytest.raises(ConfigError, match=next(iter(odd))):
        parse(Surgery, odd, "after")
