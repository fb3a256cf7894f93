"""Probabilistic surgery: what a module takes off features is drawn from a normal distribution while it is learnt."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from clipfuse.fusion.adam import descend
from clipfuse.fusion.feature_modules import Module, ModuleConfig, first_down, learn_modules, module_uses
from clipfuse.fusion.forward import Forward
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import after
from clipfuse.fusion.streams import Run
from clipfuse.order import seed_of
from clipfuse.pool import PoolView
from clipfuse.shapes import Float, Int

PROB_SURGERY = Paper(
    "Representation Surgery in Model Merging with Probabilistic Modeling",
    "Wei, Qi and He, Shuo and Yang, Enneng and Liu, Tingcong and Wang, Haobo and Feng, Lei and An, Bo",
    2025,
    "",
    "ICML",
)


class ProbSurgery(ModuleConfig):
    """f ← f − up_k·relu(down_k·f), learnt as the mean of a normal distribution."""

    rank: Annotated[int, Field(ge=1, examples=[4])] = 128
    """Width of a module."""
    steps: Annotated[int, Field(ge=1, examples=[4])] = 500
    """Steps of Adam for every task."""
    kl: Annotated[float, Field(ge=0)] = 1e-4
    """Weight of the divergence from the standard normal distribution."""


@after(paper=PROB_SURGERY, uses=module_uses)
def prob_surgery(view: PoolView, cfg: ProbSurgery, run: Run, forward: Forward) -> dict[str, Module]:
    """Probabilistic representation surgery on any merged encoder (Wei et al., 2025). Inference must know the task.

    For each task k, on unlabelled images: with h = relu(down_k·f), μ = up_k·h, log σ² = spread_k·h and ε ~ N(0, I),
    minimise mean |f − (μ + σε) − f_k| + kl · KL(N(μ, σ²) ‖ N(0, 1)) by Adam, where f are the features of the merged
    encoder, not normalised, and f_k those of the task's expert; KL is summed over the entries, averaged over images.
    up_k and spread_k begin at zero. Inference takes μ, so that a module is one of surgery's. Cost as surgery's.

    Deviations: the authors' code reports the best of five states by accuracy on the test images that it learnt from;
    here the last state is taken. Its module for all tasks together is not here.

    Source: the authors' code, 1998v7/ProbSurgery.
    """

    def learn(task: str, own: Tensor, wanted: Tensor, rows: Tensor) -> Module:
        random = torch.Generator().manual_seed(seed_of(run.seed, task, "prob_surgery"))
        down = first_down(cfg.rank, own.shape[1], random)
        return learn_prob_module(own, wanted, rows, down, cfg, random)

    return learn_modules(run, forward, cfg, "prob_surgery", learn)


def learn_prob_module(
    own: Float[Tensor, "image embed"],
    wanted: Float[Tensor, "image embed"],
    rows: Int[Tensor, "step batch"],
    down: Float[Tensor, "rank embed"],
    cfg: ProbSurgery,
    random: torch.Generator,
) -> Module:
    """Adam on the loss of `prob_surgery` over the images of each step, from `down` and up = spread = 0.

    With s = sign(f − μ − σε − f_k) / (batch·embed) and w = kl / batch, the gradients are −s + wμ by μ and
    (−sσε + w(σ² − 1)) / 2 by log σ².
    """
    rank, embed = down.shape
    learnt = torch.cat([down.flatten(), down.new_zeros(2 * embed * rank)])
    down, up, spread = parts(learnt, rank)
    batches = iter(rows)

    def gradient(out: Tensor) -> None:
        batch = next(batches)
        features = own[batch]
        weight = cfg.kl / len(batch)
        by_down, by_up, by_spread = parts(out, rank)
        hidden = (features @ down.T).relu_()
        mean, width = hidden @ up.T, (hidden @ spread.T).mul_(0.5).exp_()
        noise = torch.randn(mean.shape, generator=random).mul_(width)
        slope = (features - mean - noise - wanted[batch]).sign_().div_(features.numel())
        by_variance = (weight * (width.square() - 1) - slope * noise).mul_(0.5)
        by_mean = torch.sub(weight * mean, slope)
        torch.mm(by_mean.T, hidden, out=by_up)
        torch.mm(by_variance.T, hidden, out=by_spread)
        torch.mm((by_mean @ up).addmm_(by_variance, spread).mul_(hidden > 0).T, features, out=by_down)

    descend(learnt, gradient, len(rows), cfg.lr)
    return {"down": down, "up": up}


def parts(
    learnt: Float[Tensor, "all"], rank: int
) -> tuple[Float[Tensor, "rank embed"], Float[Tensor, "embed rank"], Float[Tensor, "embed rank"]]:
    """`down`, `up` and `spread`, one behind the other."""
    down, up, spread = learnt.chunk(3)
    return down.view(rank, -1), up.view(-1, rank), spread.view(-1, rank)
