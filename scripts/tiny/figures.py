"""What the shipped files can do: accuracies of the base, the experts and two simple mergers."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from clipfuse.tiny.task import TinyTask
from tiny.model import correct, set_vision_weights, split_tensors, zero_shot_head

Weights = Mapping[str, Tensor]
FACTORS = [round(0.05 * step, 2) for step in range(1, 31)]
"""Scaling factors of task arithmetic that the validation split chooses from."""


class Scales:
    """Weighs vision encoders on one split of every task."""

    def __init__(self, clip: CLIPModel, heads: dict[str, Tensor], tasks: tuple[TinyTask, ...], split: str):
        self.clip, self.heads = clip, heads
        self.data = {task.name: split_tensors(task, split) for task in tasks}

    def __call__(self, weights: Weights) -> list[float]:
        """Accuracy per task, of weights rounded to half precision as a file would hold them."""
        set_vision_weights(self.clip, {name: value.half().float() for name, value in weights.items()})
        return [correct(self.clip, self.heads[name], x, y) / len(y) for name, (x, y) in self.data.items()]


def task_arithmetic(base: Weights, experts: Sequence[Weights], factor: float) -> dict[str, Tensor]:
    """θ0 + factor · Σ (θk − θ0); factor 1/K is the simple average."""
    return {name: value + factor * sum(expert[name] - value for expert in experts) for name, value in base.items()}


def lengths(base: Weights, experts: Sequence[Weights]) -> tuple[list[float], float]:
    """‖τ‖ / ‖θ0‖ of every expert, and the mean cosine between two task vectors (nan for one expert)."""
    flat = torch.cat([value.flatten() for value in base.values()])
    deltas = [torch.cat([expert[name].flatten() for name in base]) - flat for expert in experts]
    pairs = [(a, b) for i, a in enumerate(deltas) for b in deltas[:i]]
    cosines = [float(torch.cosine_similarity(a, b, dim=0)) for a, b in pairs]
    return [float(d.norm() / flat.norm()) for d in deltas], sum(cosines) / len(cosines) if cosines else math.nan


def print_figures(folder: Path, tasks: tuple[TinyTask, ...], say: Callable[[str], None]) -> None:
    """The table of accuracies, read from the files; the scaling factor is chosen on val, never on test."""
    clip = CLIPModel.from_pretrained(folder / "base")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "base")
    heads = {task.name: zero_shot_head(clip, tokenizer, task) for task in tasks}
    base = {
        k: v.float() for k, v in load_file(folder / "base/model.safetensors").items() if k.startswith("vision_model.")
    }
    names = [task.name for task in tasks]
    experts = [{k: v.float() for k, v in load_file(folder / name / "model.safetensors").items()} for name in names]
    norms, cosine = lengths(base, experts)
    say(
        f"length of the task vectors over that of the base: {', '.join(f'{n:.3f}' for n in norms)}; cosine {cosine:.3f}"
    )

    val, test = (Scales(clip, heads, tasks, split) for split in ("val", "test"))
    sweep = {factor: val(task_arithmetic(base, experts, factor)) for factor in FACTORS}
    best = max(sweep, key=lambda factor: sum(sweep[factor]))
    say(
        "task arithmetic on val, mean over tasks: "
        + "  ".join(f"{f:.2f}:{100 * mean(r):.1f}" for f, r in sweep.items())
    )
    models: dict[str, Weights] = {"base": base}
    models |= {f"expert {name}": expert for name, expert in zip(names, experts, strict=True)}
    models["simple average"] = task_arithmetic(base, experts, 1 / len(experts))
    models[f"task arithmetic, {best:.2f}"] = task_arithmetic(base, experts, best)
    say(f"{'accuracy in %':28}{'split':6}" + "".join(f"{name:>14}" for name in names) + f"{'mean':>10}")
    for label, weights in models.items():
        for split, scales in (("val", val), ("test", test)):
            row = scales(weights)
            say(f"{label:28}{split:6}" + "".join(f"{100 * a:14.1f}" for a in row) + f"{100 * mean(row):10.1f}")


def mean(row: list[float]) -> float:
    """Plain mean."""
    return sum(row) / len(row)
