"""What tests of rules that look at data share: a small pool with pictures, and its towers in float64."""

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
import torch
from references import Models
from torch import Tensor, nn
from torch.nn import functional

from clipfuse.checkpoints.geometry import Geometry
from clipfuse.fusion import streams
from clipfuse.fusion.kept import Kept
from clipfuse.fusion.lent import Lent, TaskImages
from clipfuse.fusion.merge import look_at, merge
from clipfuse.fusion.merged import Merged
from clipfuse.fusion.streams import Run
from clipfuse.models.build import build_vision_model
from clipfuse.pool.model_pool import pool_from_memory
from clipfuse.testing import TASKS, random_models
from clipfuse.testing.lender import RandomLender

BASE = "_pretrained_"
USES = ("train_images", "train_labels")
TINY = Geometry(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
)


def tiny_models(spread: float = 0.05) -> Models:
    return random_models(0.3, spread=spread, geometry=TINY)


def merged(models: Models, method: str, **settings: Any) -> Merged:
    """A merge on the pictures of `lent`."""
    return merge(pool_from_memory(models, TINY), {"name": method, **settings}, data=RandomLender(TINY))


def lent(uses: tuple[str, ...] = USES) -> Lent:
    return RandomLender(TINY).lend(TASKS, uses, 0)


def task_vectors(models: Models) -> dict[str, Tensor]:
    """Name → τ (task, *shape) as float32 has them, float64."""
    base = models[BASE]
    return {name: torch.stack([models[task][name] - base[name] for task in TASKS]).double() for name in base}


def moved(found: Merged, models: Models) -> dict[str, Tensor]:
    """θ − θ0."""
    return {name: tensor.double() - models[BASE][name].double() for name, tensor in found.tensors.items()}


def apart(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """‖found − wanted‖ / ‖wanted‖ over the whole model."""
    assert found.keys() == wanted.keys()
    squares = [((found[name] - wanted[name]).square().sum(), wanted[name].square().sum()) for name in wanted]
    return float(sum(one for one, _ in squares) / sum(other for _, other in squares)) ** 0.5


class Exact:
    """A tower and its head in float64."""

    def __init__(self, weights: dict[str, Tensor]):
        self.tower = build_vision_model({name: tensor.float() for name, tensor in weights.items()}, TINY)
        nn.Module.to(self.tower, torch.float64)
        self.parameters = dict(self.tower.named_parameters())
        with torch.no_grad():
            for name, tensor in weights.items():
                self.parameters[name].copy_(tensor)

    def logs(self, task: str, pixels: Tensor) -> Tensor:
        """Log-probabilities (image, class)."""
        data = lent()
        features = self.tower(pixel_values=pixels.double()).pooler_output @ data.projection.double().T
        head = data.heads[task]
        return (head.scale * functional.normalize(features, dim=-1) @ head.weights.double().T).log_softmax(-1)

    def gradient(self, value: Tensor) -> dict[str, Tensor]:
        found = torch.autograd.grad(value, list(self.parameters.values()), retain_graph=True)
        return dict(zip(self.parameters, found, strict=True))


def check_goes_on(
    monkeypatch: pytest.MonkeyPatch, function: Callable, cfg: Any, uses: tuple[str, ...], stops: tuple[int, ...]
) -> None:
    """Interrupted at some looks at pictures and called again, a rule gives the bits of an undisturbed run."""
    monkeypatch.setattr(streams, "SAVE_SECONDS", -1.0)
    view = look_at(pool_from_memory(tiny_models(), TINY))

    def run(kept: Kept) -> tuple[dict[str, Tensor], dict[str, Any]]:
        with Run.open(view, lent(uses), kept) as opened:
            found = {name: delta.clone() for name, delta in function(view, cfg, opened)}
            return found, {**opened.tally, "ledger": opened.data.ledger, "files": dict(opened.files)}

    plain, looks, stop = TaskImages.pixels, 0, 0

    def pixels(self: TaskImages, rows: list[int]) -> Tensor:
        nonlocal looks
        looks += 1
        if looks == stop:
            raise KeyboardInterrupt
        return plain(self, rows)

    monkeypatch.setattr(TaskImages, "pixels", pixels)
    wanted, counts = run(Kept())
    in_all, looks, kept = looks, 0, Kept(uuid4().hex)
    for at in stops:
        stop = at
        with pytest.raises(KeyboardInterrupt):
            run(kept)
    found, again = run(kept)
    assert looks < in_all + 2 * len(stops) + len(TASKS), "it begins anew"
    assert again == counts
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    kept.clear()
