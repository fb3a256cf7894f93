"""Representation surgery: a small module for each task brings the merged encoder's features back to the expert's."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from clipfuse.fusion.adam import descend
from clipfuse.fusion.feature_modules import Module, ModuleConfig, both, first_down, learn_modules, module_uses
from clipfuse.fusion.forward import Forward
from clipfuse.fusion.paper import Paper
from clipfuse.fusion.registry import after
from clipfuse.fusion.streams import Run
from clipfuse.order import seed_of
from clipfuse.pool import PoolView
from clipfuse.shapes import Float, Int

SURGERY = Paper(
    "Representation Surgery for Multi-Task Model Merging",
    "Yang, Enneng and Shen, Li and Wang, Zhenyi and Guo, Guibing and Chen, Xiaojun and Wang, Xingwei and Tao, Dacheng",
    2024,
    "2402.02705",
    "ICML",
)


class Surgery(ModuleConfig):
    """f ← f − up_k·relu(down_k·f), features f of images of task k."""

    rank: Annotated[int, Field(ge=1)] = 16
    """Width of a module."""
    steps: Annotated[int, Field(ge=1, examples=[4])] = 1000
    """Steps of Adam for every task."""


@after(paper=SURGERY, uses=module_uses)
def surgery(view: PoolView, cfg: Surgery, run: Run, forward: Forward) -> dict[str, Module]:
    """Representation surgery on any merged encoder (Yang et al., 2024). Inference must know the task.

    For each task k, on unlabelled images: minimise mean |f̂ − up_k·relu(down_k·f̂) − f̂_k| by Adam, where f̂ are the unit
    features of the merged encoder and f̂_k those of the task's expert, for the same images; down_k begins as a
    Linear of torch without bias, up_k at zero, where the module changes nothing. Both encoders are frozen, so that each
    image goes through each of them once, however often it is drawn: min(count, steps·batch) images a task, in one pass;
    a step is then three products of batch × embed × rank. Takes a second tower, and the features of one task at a time.

    Deviations: the authors' code takes features as they are, where images whose features are longer count for more,
    and the learnt length is lost in the head; FusionBench takes unit features, as here, and does not make the
    corrected ones unit again, which changes losses, not predictions. In both the modules learn from test images
    (`images=test`).

    Source: the authors' code, EnnengYang/RepresentationSurgery, and FusionBench's adamerging_surgery.
    """

    def learn(task: str, own: Tensor, wanted: Tensor, rows: Tensor) -> Module:
        random = torch.Generator().manual_seed(seed_of(run.seed, task, "surgery"))
        own, wanted = functional.normalize(own, dim=-1), functional.normalize(wanted, dim=-1)
        return learn_module(own, wanted, rows, first_down(cfg.rank, own.shape[1], random), cfg.lr)

    return learn_modules(run, forward, cfg, "surgery", learn)


def learn_module(
    own: Float[Tensor, "image embed"],
    wanted: Float[Tensor, "image embed"],
    rows: Int[Tensor, "step batch"],
    down: Float[Tensor, "rank embed"],
    lr: float,
) -> Module:
    """Adam on mean |f − up·relu(down·f) − f_k| over the images of each step, from `down` and up = 0.

    With the slope s = sign(…) / (batch·embed) by the corrected features, the gradients are −sᵀh by up and
    −((s·up) ⊙ [h > 0])ᵀf by down, h = relu(down·f).
    """
    rank, embed = down.shape
    learnt = torch.cat([down.flatten(), down.new_zeros(embed * rank)])
    down, up = both(learnt, rank)
    batches = iter(rows)

    def gradient(out: Tensor) -> None:
        batch = next(batches)
        features = own[batch]
        by_down, by_up = both(out, rank)
        hidden = (features @ down.T).relu_()
        slope = torch.addmm(features - wanted[batch], hidden, up.T, alpha=-1).sign_().div_(-features.numel())
        torch.mm(slope.T, hidden, out=by_up)
        torch.mm((slope @ up).mul_(hidden > 0).T, features, out=by_down)

    descend(learnt, gradient, len(rows), lr)
    return {"down": down, "up": up}
