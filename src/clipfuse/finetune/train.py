"""The loop: gradients of batches, steps of the optimiser, validation, and states to go on from."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from clipfuse.data.ahead import ahead
from clipfuse.data.preprocess import Preprocess
from clipfuse.errors import ModelError
from clipfuse.evaluate.forward import out_of_memory
from clipfuse.finetune.batches import Batches, Part, TrainingTask
from clipfuse.finetune.memory import advice
from clipfuse.finetune.optimiser import clip, gradient_norm, make_optimizer
from clipfuse.finetune.recipe import Recipe
from clipfuse.finetune.state import Course, StateFile
from clipfuse.finetune.trained import Trained
from clipfuse.order import seed_of
from clipfuse.stop import Stop

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)
AT_ONCE = 25
"""Steps whose losses are looked at together on a GPU, so that it need not wait."""
VAL_BATCH = 64
RESUMED = "goes on"
"""Told with the steps that an earlier call has made."""


@dataclass(frozen=True)
class Running:
    """How a training runs; its result does not depend on it, but for rounding."""

    accelerator: "Accelerator"
    preprocess: Preprocess
    projection: Tensor
    """The base's, (embed, width)."""
    state: StateFile
    validate_every: int = 500
    """Steps between validations; 0 validates at the beginning and the end only."""
    save_minutes: float = 5.0
    """Minutes between states."""
    deadline: float | None = None
    """Of `time.monotonic`; then it stops with its state saved."""
    told: Callable[..., None] = lambda count, on=None: None
    """Told steps that were made, and in words how it stands."""


class Training:
    """A fine-tuning of one tower, in place; goes on from the state that is there.

    Each step takes `batch_size` images of every task, dealt out to all processes, and minimises the sum over tasks of
    the mean cross-entropy against the task's frozen head: logits = scale · normalise(P f(x)) · weightsᵀ.

    Raises:
        OutputError: the state is damaged, or another training's.
        ModelError: the memory does not suffice.
    """

    def __init__(self, trained: Trained, tasks: Sequence[TrainingTask], recipe: Recipe, steps: int, how: Running):
        self.trained, self.tasks, self.recipe, self.steps, self.how = trained, tasks, recipe, steps, how
        self.accelerator = how.accelerator
        self.device: torch.device = self.accelerator.device
        share = self.accelerator.process_index, self.accelerator.num_processes
        self.batches = Batches(tasks, recipe, self.device, share)
        self.heads = [task.head.weights.to(self.device) for task in tasks]
        self.projection = how.projection.to(self.device)
        with self.memory_told():
            trained.tower.to(self.device)
            self.inner_optimizer = make_optimizer(trained.parameters, recipe)
            self.course, scaler = how.state.load(trained.parameters, self.inner_optimizer)
            self.tower, self.optimizer = self.accelerator.prepare(trained.tower, self.inner_optimizer)
        if self.accelerator.scaler is not None and scaler:
            self.accelerator.scaler.load_state_dict(scaler)
        self.pending: list[Tensor] = []
        self.stopping = False
        self.saved = time.monotonic()

    def run(self) -> Course:
        """Make the steps that are left; fewer have been made than there are to make if time was up.

        Raises:
            ModelError: a loss that is not finite (the state before it is kept), or memory that does not suffice.
            OutputError: the state cannot be written.
            KeyboardInterrupt: ^C or SIGTERM; the state is saved first.
        """
        first = self.course.steps
        self.how.told(first, RESUMED)
        loaded = ahead(self.batches.load, range(first, self.steps))
        with Stop() as stop, self.memory_told(), self.own_random_numbers():
            try:
                if not self.course.val:
                    self.validate(0)
                for step, parts in enumerate(loaded, first):
                    self.make_step(step, parts, stop)
                    if self.stopping:
                        break
            finally:
                loaded.close()
            if stop.asked or (self.stopping and self.course.steps < self.steps):
                self.save()
            if stop.asked:
                log.warning("step %d of %d is saved; the same command goes on", self.course.steps, self.steps)
                raise KeyboardInterrupt
        return self.course

    def make_step(self, step: int, parts: Sequence[Part], stop: Stop) -> None:
        every = self.how.validate_every
        pause = step + 1 == self.steps or bool(every and (step + 1) % every == 0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.rate(step, self.steps)
        loss = self.gradients(step, parts)
        norm = gradient_norm(self.accelerator, self.trained.parameters)
        self.pending.append(torch.stack([loss, norm]))
        if self.device.type == "cpu":  # before the weights change, so that the last good ones are still there
            self.look(stop)
        if self.recipe.max_grad_norm is not None:
            clip(self.accelerator, self.trained.parameters, self.recipe.max_grad_norm, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.pending and (pause or len(self.pending) == AT_ONCE):
            self.look(stop)
        if pause:
            self.validate(step + 1)
        if not self.pending and time.monotonic() - self.saved > 60 * self.how.save_minutes:
            self.save()

    def gradients(self, step: int, parts: Sequence[Part]) -> Tensor:
        """Accumulate the gradients of a step; this process's share of the loss."""
        if self.recipe.drops:
            torch.manual_seed(seed_of(self.recipe.seed, "dropout", step, self.accelerator.process_index))
        self.tower.train()
        whole = torch.zeros((), device=self.device)
        for number, part in enumerate(parts, 1):
            with nullcontext() if number == len(parts) else self.accelerator.no_sync(self.tower):
                logits = self.logits(part.task, part.pixels)
                smoothing = self.recipe.label_smoothing
                loss = functional.cross_entropy(logits, part.labels, reduction="sum", label_smoothing=smoothing)
                loss = loss / self.recipe.batch_size
                self.accelerator.backward(loss * self.accelerator.num_processes)  # DDP takes the processes' mean
            whole += loss.detach()
        return whole

    def logits(self, task: int, pixels: Tensor) -> Tensor:
        """(image, class) of preprocessed images, float32 whatever the precision of the tower."""
        pooled = self.tower(pixel_values=self.how.preprocess.normalise(pixels)).pooler_output
        features = functional.linear(pooled.float(), self.projection)
        return self.tasks[task].head.scale * functional.normalize(features, dim=-1) @ self.heads[task].T

    def look(self, stop: Stop) -> None:
        """Gather the losses of the last steps, and whether any process is to stop. Raises ModelError."""
        late = self.how.deadline is not None and time.monotonic() >= self.how.deadline
        asked = torch.tensor([float(stop.asked or late), 0.0], device=self.device)
        found: Tensor = self.accelerator.reduce(torch.stack([*self.pending, asked]), "sum")  # type: ignore[assignment]
        *steps, (stops, _) = found.tolist()
        self.pending.clear()
        for loss, norm in steps:
            if not (isfinite(loss) and isfinite(norm)):
                self.refuse(loss, norm / self.accelerator.num_processes)
            self.course.losses.append(loss)
            rate = self.recipe.rate(self.course.steps - 1, self.steps)
            self.accelerator.log({"loss": loss, "lr": rate}, step=self.course.steps)
        self.stopping = stops > 0
        self.how.told(len(steps), f"loss {steps[-1][0]:.3f}")

    def refuse(self, loss: float, norm: float) -> None:
        """Keep the last good state, and say where it went wrong. Raises ModelError."""
        step, path = self.course.steps, self.how.state.path
        what = f"the loss is {loss}" if not isfinite(loss) else f"the norm of the gradient is {norm}"
        if self.device.type == "cpu":
            self.save()
        kept = "no state was saved"
        if path.is_file():
            kept = f"the state after step {self.how.state.check()} is kept in {path}"
        batch = self.batches.described(step)
        raise ModelError(
            f"{what} at step {step + 1} of {self.steps} (its batch: {batch}); {kept}; "
            "a lower lr, warmup_steps, max_grad_norm=1 or precision=float32 may help (with --overwrite)"
        )

    def save(self) -> None:
        """Write the state, by the first process."""
        scaler = self.accelerator.scaler
        self.saved = time.monotonic()
        if not all(bool(value.isfinite().all()) for value in self.trained.parameters.values()):
            return  # the last state that is good stays
        if self.accelerator.is_main_process:
            extra = scaler.state_dict() if scaler is not None else None
            self.how.state.save(self.trained.parameters, self.inner_optimizer, self.course, extra)

    @torch.no_grad()
    def validate(self, step: int) -> None:
        """Accuracy and loss on the val images of every task that has some."""
        self.tower.eval()
        first, count = self.batches.share
        for number, task in enumerate(self.tasks):
            if task.val_rows is None or not task.val:
                continue
            told = torch.zeros(3, device=self.device)
            mine = task.val[first::count]
            size = min(VAL_BATCH, self.recipe.micro_batch_size or VAL_BATCH)
            for start in range(0, len(mine), size):
                rows = list(mine[start : start + size])
                labels = task.val_rows.labels[rows].to(self.device)
                logits = self.logits(number, task.val_rows.pixels(rows, self.device))
                right = (logits.argmax(-1) == labels).sum()
                loss = functional.cross_entropy(logits, labels, reduction="sum")
                told += torch.stack([torch.full_like(loss, len(rows)), right.to(loss), loss])
            found: Tensor = self.accelerator.reduce(told, "sum")  # type: ignore[assignment]
            n, correct, loss = found.tolist()
            if not isfinite(loss):
                raise ModelError(f"the loss on val is {loss} after step {step}; a lower lr or max_grad_norm=1 may help")
            self.course.val.append(
                {"step": step, "task": task.name, "n": int(n), "correct": int(correct), "loss": loss / n}
            )
            self.accelerator.log({f"val/{task.name}/accuracy": correct / n}, step=step)

    @contextmanager
    def memory_told(self) -> Iterator[None]:
        """Inside, running out of memory is told with the settings that would fit. Raises ModelError."""
        try:
            yield
            return
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
        share = -(-self.recipe.batch_size // self.accelerator.num_processes)
        begun = bool(self.inner_optimizer.state)
        raise ModelError(advice(self.trained, self.recipe, self.device, self.how.preprocess.crop, share, begun))

    @contextmanager
    def own_random_numbers(self) -> Iterator[None]:
        """Inside, dropout is seeded for each step; the caller's random numbers are what they were afterwards."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices) if self.recipe.drops else nullcontext():
            yield
