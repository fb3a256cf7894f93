"""prob_surgery's modules against autograd and torch's Adam in float64, with the same noise."""

import pytest
import torch
from torch import Tensor, nn

from clipfuse.config import parse
from clipfuse.errors import ConfigError
from clipfuse.fusion.feature_modules import first_down
from clipfuse.fusion.forward import Forward
from clipfuse.fusion.merge import look_at, open_pool
from clipfuse.fusion.prob_surgery import ProbSurgery, learn_prob_module, prob_surgery
from clipfuse.fusion.streams import Run
from clipfuse.models.per_task import corrected
from clipfuse.pool import HuggingFaceClipVisionPool
from clipfuse.testing import TASKS, random_models, write_models
from clipfuse.testing.lender import RandomLender

IMAGES, EMBED, RANK = 60, 48, 6


def pairs() -> tuple[Tensor, Tensor]:
    """Features of length 10 or so, and those shifted."""
    random = torch.Generator().manual_seed(0)
    own = 1.4 * torch.randn(IMAGES, EMBED, generator=random) + 1
    return own, own + torch.randn(EMBED, generator=random) + 0.3 * torch.randn(IMAGES, EMBED, generator=random)


def reference(own: Tensor, wanted: Tensor, rows: Tensor, down: Tensor, cfg: ProbSurgery, seed: int) -> list[Tensor]:
    """An ordinary loop of torch, float64: down, up and spread."""
    random = torch.Generator().manual_seed(seed)
    weights = [nn.Parameter(down.double())] + [nn.Parameter(torch.zeros(EMBED, RANK).double()) for _ in range(2)]
    optimizer = torch.optim.Adam(weights, lr=cfg.lr)
    for batch in rows:
        features = own[batch].double()
        hidden = nn.functional.linear(features, weights[0]).relu()
        mean, log_variance = (nn.functional.linear(hidden, weight) for weight in weights[1:])
        drawn = torch.distributions.Normal(mean, (log_variance / 2).exp())
        bias = drawn.loc + drawn.scale * torch.randn(mean.shape, generator=random).double()
        apart = torch.distributions.kl_divergence(drawn, torch.distributions.Normal(0.0, 1.0)).sum(1).mean()
        loss = nn.functional.l1_loss(features - bias, wanted[batch].double()) + cfg.kl * apart
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [weight.detach() for weight in weights]


@pytest.mark.parametrize("kl", [0.0, 1e-4, 0.1])
def test_twenty_steps_of_autograd(kl: float):
    own, wanted = pairs()
    cfg = ProbSurgery(kl=kl)
    rows = torch.randint(IMAGES, (20, 16), generator=torch.Generator().manual_seed(1))
    down = first_down(RANK, EMBED, torch.Generator().manual_seed(2))
    found = learn_prob_module(own, wanted, rows, down, cfg, torch.Generator().manual_seed(3))
    first, second, spread = reference(own, wanted, rows, down, cfg, 3)
    assert (first - down).norm() > 1e-2 * down.norm()
    assert spread.abs().max() > 1e-3
    torch.testing.assert_close(found["down"].double(), first, atol=1e-5, rtol=0)
    torch.testing.assert_close(found["up"].double(), second, atol=1e-5, rtol=0)


def test_a_whole_training_comes_nearer_to_the_expert():
    own, wanted = pairs()
    rows = torch.randint(IMAGES, (500, 16), generator=torch.Generator().manual_seed(1))
    down = first_down(RANK, EMBED, torch.Generator().manual_seed(2))
    module = learn_prob_module(own, wanted, rows, down, ProbSurgery(), torch.Generator().manual_seed(3))
    assert (corrected(own, module) - wanted).abs().mean() < 0.8 * (own - wanted).abs().mean()


def test_modules_for_every_expert(tmp_path):
    folders = write_models(random_models(0.3), tmp_path)
    view = look_at(open_pool(HuggingFaceClipVisionPool.from_tree({"models": folders})), threads=1)
    lent = RandomLender().lend(view.tasks, ("val_images",), 0)
    with Run.open(view, lent) as run:
        found = prob_surgery(view, ProbSurgery(rank=5, steps=3, batch=4), run, Forward(run))
        shapes = {task: [tuple(t.shape) for t in module.values()] for task, module in found.items()}
        assert shapes == {task: [(5, 24), (24, 5)] for task in TASKS}
        assert all(module["up"].any() for module in found.values())


@pytest.mark.parametrize("odd", [{"kl": -1.0}, {"rank": 0}, {"images": "all"}])
def test_bad_settings_are_named(odd: dict):
    with pytest.raises(ConfigError, match=next(iter(odd))):
        parse(ProbSurgery, odd, "after")
