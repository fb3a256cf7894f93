"""Learning by entropy: unlabelled images of every task, Adam on whatever a method learns, and when to stop early."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from clipfuse.errors import ModelError
from clipfuse.fusion.adam import Adam
from clipfuse.fusion.forward import Forward
from clipfuse.fusion.lent import TaskImages
from clipfuse.fusion.registry import DeltaConfig, Uses
from clipfuse.fusion.streams import Run
from clipfuse.shapes import Float

HELD_OUT = 0.2
"""Share of the images that early stopping looks at instead of learning on them; of images=test it looks at val."""
LOOKED_AT = 256
"""Most images of a task that early stopping looks at, each time the same ones."""


class EntropyConfig(DeltaConfig):
    """Settings of every method that learns by the entropy of its predictions on unlabelled images."""

    images: Literal["val", "train", "test"] = "val"
    """Split that it learns on; published figures are of the test images, which are scored afterwards."""
    allow_test_adaptation: bool = False
    """Allow images=test: its results are then transductive, and marked so."""
    steps: Annotated[int, Field(ge=1, examples=[3])] = 1000
    """Steps of Adam."""
    batch: Annotated[int, Field(ge=1, examples=[4])] = 16
    """Images of every task a step."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Adam's step size."""
    early_stop: Literal["none", "entropy", "accuracy"] = "none"
    """What says when to stop: the mean entropy of images that are held out (of val, of train where images=train),
    or by their labels the accuracy.
    """
    every: Annotated[int, Field(ge=1)] = 50
    """Steps between looks of early stopping."""
    patience: Annotated[int, Field(ge=1)] = 4
    """Looks without a better value after which it stops; what was best is kept."""


def entropy_uses(cfg: EntropyConfig) -> tuple[Uses, ...]:
    """What a method with these settings looks at."""
    seen: list[Uses] = [f"{cfg.images}_images"]  # type: ignore[list-item]
    split = "val" if cfg.images == "test" else cfg.images
    if cfg.early_stop != "none":
        seen.append(f"{split}_images")  # type: ignore[arg-type]
    if cfg.early_stop == "accuracy":
        seen.append(f"{split}_labels")  # type: ignore[arg-type]
    return tuple(dict.fromkeys(seen))


def entropies(logits: Float[Tensor, "batch class"]) -> Float[Tensor, "batch"]:
    """−Σ_c p_c log p_c of each row, nats."""
    logs = logits.log_softmax(-1)
    return -(logs.exp() * logs).sum(-1)


@dataclass
class Course:
    """What happened."""

    entropy: Float[Tensor, "step task"]
    """Mean entropy of each step's batches, nats, float64."""
    done: int = 0
    """Steps that were made."""

    def to_csv(self, tasks: tuple[str, ...]) -> str:
        """A line a step: mean entropy of every task's batch, nats."""
        lines = [",".join(["step", *tasks])]
        lines += [
            f"{n + 1}," + ",".join(f"{v:.5g}" for v in row) for n, row in enumerate(self.entropy[: self.done].tolist())
        ]
        return "\n".join(lines) + "\n"


@dataclass
class Watch:
    """Early stopping: a value of images that are not learned on, and the best parameters so far."""

    signal: Literal["none", "entropy", "accuracy"]
    images: Mapping[str, TaskImages]
    best: Mapping[str, Tensor] = field(default_factory=dict)
    figures: Tensor = field(default_factory=lambda: torch.tensor([float("inf"), 0.0], dtype=torch.float64))
    """The best value (small is good), and looks since then."""

    @property
    def state(self) -> dict[str, Tensor]:
        """What a later look depends on."""
        return {"watched": self.figures} | {f"best {name}": value for name, value in self.best.items()}

    @torch.no_grad()
    def look(self, forward: Forward, batch: int) -> float:
        """Mean over tasks of the mean entropy, or of the share of images that are wrong."""
        found = []
        for task, images in self.images.items():
            rows, total = images.choice(LOOKED_AT), 0.0
            for start in range(0, len(rows), 4 * batch):
                some = rows[start : start + 4 * batch]
                logits = forward.logits(task, images.pixels(some))
                if self.signal == "accuracy":
                    total += int((logits.argmax(-1) != images.labels(some)).sum())
                else:
                    total += float(entropies(logits).double().sum())
            found.append(total / len(rows))
        return sum(found) / len(found)

    def is_over(self, value: float, parameters: Mapping[str, Tensor], patience: int) -> bool:
        """Keep what is better; whether nothing was for too long."""
        if value < float(self.figures[0]):
            self.figures[:] = torch.tensor([value, 0.0])
            for name, tensor in parameters.items():
                self.best[name].copy_(tensor)
        else:
            self.figures[1] += 1
        return float(self.figures[1]) >= patience


def parts(run: Run, cfg: EntropyConfig) -> tuple[dict[str, TaskImages], Watch]:
    """By task, the images that are learned on, and those that early stopping looks at."""
    learned = {task: run.data.images(task, cfg.images) for task in run.data.tasks}
    if cfg.early_stop == "none":
        return learned, Watch("none", {})
    if cfg.images == "test":
        return learned, Watch(cfg.early_stop, {task: run.data.images(task, "val") for task in run.data.tasks})
    split = {task: images.held_out(HELD_OUT) for task, images in learned.items()}
    return {task: rest for task, (rest, _) in split.items()}, Watch(
        cfg.early_stop, {t: out for t, (_, out) in split.items()}
    )


def minimise_entropy(
    run: Run,
    forward: Forward,
    cfg: EntropyConfig,
    optimiser: Adam,
    spread: Callable[[int], object],
    pull_back: Callable[[], Mapping[str, Tensor]],
    title: str,
    steps: int | None = None,
) -> Course:
    """Steps of Adam on Σ_tasks (mean entropy of a batch), in place on the optimiser's parameters.

    Args:
        run: Lends images, keeps the state.
        forward: The tower that `spread` fills.
        cfg: Steps, images, early stopping.
        optimiser: Of what is learned.
        spread: Writes the weights of the parameters as they are at a step into `forward`.
        pull_back: The gradient by the parameters, from the gradients of `forward`'s.
        title: Shown, and tells the states of a run apart.
        steps: Instead of `cfg.steps`.

    Raises:
        ModelError: an entropy that is not finite.
    """
    tasks = run.data.tasks
    learned, watch = parts(run, cfg)
    if cfg.early_stop != "none":
        watch.best = {name: value.clone() for name, value in optimiser.parameters.items()}
    total = steps or cfg.steps
    course = Course(torch.zeros(total, len(tasks), dtype=torch.float64))
    for parameter in forward.parameters.values():
        parameter.requires_grad_(True)
    state, over = {**optimiser.state, **watch.state, "entropy": course.entropy}, False
    for step in run.steps(total, state, title):
        spread(step)
        if watch.images and step % cfg.every == 0:
            over = watch.is_over(watch.look(forward, cfg.batch), optimiser.parameters, cfg.patience)
        if over:
            break
        for parameter in forward.parameters.values():
            parameter.grad = None if parameter.grad is None else parameter.grad.zero_()
        for number, task in enumerate(tasks):
            images = learned[task]
            loss = entropies(forward.logits(task, images.pixels(images.rows(step, cfg.batch)))).mean()
            loss.backward()
            course.entropy[step, number] = value = float(loss.detach())
            if not isfinite(value):
                raise ModelError(f"{title}: the entropy on {task} is {value} at step {step + 1}; a lower lr may help")
        optimiser.step(pull_back())
        run.say(f"entropy {float(course.entropy[step].mean()):.3f}")
    if run.asked:
        raise KeyboardInterrupt
    course.done = int(optimiser.taken)
    for parameter in forward.parameters.values():
        parameter.requires_grad_(False)
        parameter.grad = None
    if watch.images:
        if not over:
            spread(course.done)
            watch.is_over(watch.look(forward, cfg.batch), optimiser.parameters, cfg.patience)
        for name, value in optimiser.parameters.items():
            value.copy_(watch.best[name])
    return course
