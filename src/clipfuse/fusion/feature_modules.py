"""Small modules behind a merged encoder, one a task: settings, and learning from features of images seen once."""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from clipfuse.checkpoints.safetensors_file import TensorSpec
from clipfuse.config import Config
from clipfuse.fusion.forward import Forward
from clipfuse.fusion.registry import Uses
from clipfuse.fusion.streams import Run
from clipfuse.pool.view import one_torch_thread
from clipfuse.shapes import Float, Int

BATCH = 64
"""Images of a forward pass."""

Module = dict[str, Tensor]
Learn = Callable[[str, Float[Tensor, "image embed"], Float[Tensor, "image embed"], Int[Tensor, "step batch"]], Module]
"""(expert, merged encoder's features, expert's, rows of each step) → `down` (rank, embed), `up` (embed, rank)."""


class ModuleConfig(Config):
    """Settings of every rule that learns a module for each task."""

    images: Literal["val", "train", "test"] = "val"
    """Split whose images, without labels, the modules learn from; published figures are of the test images."""
    allow_test_adaptation: bool = False
    """Allow images=test: its results are then transductive, and marked so."""
    rank: Annotated[int, Field(ge=1)]
    """Width of a module."""
    steps: Annotated[int, Field(ge=1)]
    """Steps of Adam for every task."""
    batch: Annotated[int, Field(ge=1, examples=[4])] = 16
    """Images a step."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Adam's step size."""


def module_uses(cfg: ModuleConfig) -> tuple[Uses, ...]:
    """What a rule with these settings looks at."""
    return (f"{cfg.images}_images",)  # type: ignore[return-value]


def first_down(rank: int, embed: int, random: torch.Generator) -> Float[Tensor, "rank embed"]:
    """Where a Linear of torch begins: uniform in ±1/√embed."""
    return torch.empty(rank, embed).uniform_(-(embed**-0.5), embed**-0.5, generator=random)


def learn_modules(run: Run, forward: Forward, cfg: ModuleConfig, title: str, learn: Learn) -> dict[str, Module]:
    """A module for every expert, learnt from features of the images that are drawn.

    Features are kept for one task at a time; with the modules that are done they are what an interrupted run goes on
    from.
    """
    embed, rank = len(forward.projection), cfg.rank
    images = [run.data.images(task, cfg.images) for task in run.data.tasks]
    drawn = [torch.tensor([own.rows(step, cfg.batch) for step in range(cfg.steps)]) for own in images]
    wanted = [rows.unique().tolist() for rows in drawn]  # in order: whatever reads them goes forward
    plan = [(place, start) for place, rows in enumerate(wanted) for start in range(0, len(rows), BATCH)]
    longest = TensorSpec((max(map(len, wanted)), embed), torch.float32)
    features = run.scratch({"merged": longest, "expert": longest})
    learnt = torch.zeros(len(images), 2 * rank * embed)
    expert, loaded = Forward(run), -1
    for step in run.steps(len(plan), {**features, "learnt": learnt}, title, "batch"):
        place, start = plan[step]
        task, rows = images[place].task, wanted[place][start : start + BATCH]
        if loaded != place:
            expert.load_expert(place)
            loaded = place
        run.say(task)
        pixels = images[place].pixels(rows)
        with torch.no_grad():
            for name, encoder in (("merged", forward), ("expert", expert)):
                features[name][start : start + len(rows)] = encoder.features(pixels).cpu()
        if start + len(rows) == len(wanted[place]):
            seen = slice(start + len(rows))
            numbers = torch.searchsorted(torch.tensor(wanted[place]), drawn[place])
            with one_torch_thread():
                module = learn(task, features["merged"][seen], features["expert"][seen], numbers)
            learnt[place] = torch.cat([module["down"].flatten(), module["up"].flatten()])
    found = [both(row, rank) for row in learnt]
    return {own.task: {"down": down, "up": up} for own, (down, up) in zip(images, found, strict=True)}


def both(learnt: Float[Tensor, "all"], rank: int) -> tuple[Float[Tensor, "rank embed"], Float[Tensor, "embed rank"]]:
    """`down` and `up`, one behind the other."""
    down, up = learnt.chunk(2)
    return down.view(rank, -1), up.view(-1, rank)
