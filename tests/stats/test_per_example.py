"""Sums over examples against a loop that differentiates one example after the other."""

from collections.abc import Iterator

import pytest
import torch
from random_models import vision_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPVisionConfig, CLIPVisionModel

from clipfuse.checkpoints.geometry import Geometry
from clipfuse.errors import ModelError
from clipfuse.stats import per_example
from clipfuse.stats.gradients import add_gradient, chunks, images_at_once
from clipfuse.stats.per_example import Power, add_gradients

TINY = Geometry(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
)


class Model:
    """A tower with random weights of some size, a projection of it, a head, and images with labels."""

    def __init__(self, dtype: torch.dtype = torch.float64, images: int = 5):
        random = torch.Generator().manual_seed(0)
        self.tower = vision_model(1, TINY).requires_grad_(False)
        nn.Module.to(self.tower, dtype)
        for name, parameter in self.tower.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random, dtype=dtype) * 0.3 + ("norm" in name))
        self.projection = nn.Linear(16, 8, bias=False, dtype=dtype).requires_grad_(False)
        self.pixels = torch.randn(images, 3, 16, 16, generator=random, dtype=dtype)
        self.labels = torch.randint(4, (images,), generator=random)
        self.head = functional.normalize(torch.randn(4, 8, generator=random, dtype=dtype), dim=-1)

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"": self.tower, "visual_projection": self.projection}

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {**dict(self.tower.named_parameters()), "visual_projection.weight": self.projection.weight}

    def zeros(self) -> dict[str, Tensor]:
        return {name: torch.zeros_like(parameter) for name, parameter in self.parameters.items()}

    def loss(self, rows: slice = slice(None)) -> Tensor:
        features = self.projection(self.tower(self.pixels[rows]).pooler_output)
        logits = 10 * functional.normalize(features, dim=-1) @ self.head.T
        return functional.cross_entropy(logits, self.labels[rows], reduction="sum")

    def sums(self, power: Power, *batches: slice) -> dict[str, Tensor]:
        found = self.zeros()
        with add_gradients(self.modules, found, power):
            for rows in batches:
                self.loss(rows).backward()
        return found

    def gradients(self, batches: list[slice]) -> Iterator[tuple[Tensor, ...]]:
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        for rows in batches:
            yield torch.autograd.grad(self.loss(rows), list(self.parameters.values()))

    def wanted(self, power: Power) -> dict[str, Tensor]:
        """The same by the definition, an example at a time."""
        found = self.zeros()
        for single in self.gradients([slice(row, row + 1) for row in range(len(self.pixels))]):
            for total, gradient in zip(found.values(), single, strict=True):
                total += gradient.abs() ** power
        return found


def apart(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest difference in a tensor, by its largest entry; keys' biases change nothing but by rounding."""
    assert found.keys() == wanted.keys()
    names = [name for name in wanted if not name.endswith("k_proj.bias")]
    assert all(found[name].abs().max() < 1e-5 for name in wanted.keys() - set(names))
    return max(float((found[name] - wanted[name]).abs().max() / wanted[name].abs().max()) for name in names)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
def test_every_parameter(power: Power, dtype: torch.dtype, within: float):
    model = Model(dtype)
    assert apart(model.sums(power, slice(None)), model.wanted(power)) < within


@pytest.mark.parametrize("power", [1, 2])
def test_a_few_rows_at_a_time(monkeypatch: pytest.MonkeyPatch, power: Power):
    monkeypatch.setattr(per_example, "BLOCK", 100)  # 6 rows of 16 entries, 4 of 24
    model = Model()
    assert apart(model.sums(power, slice(None)), model.wanted(power)) < 1e-13


def test_passes_add_up_and_nothing_is_added_outside():
    model = Model()
    found = model.sums(2, slice(0, 2), slice(2, 5))
    assert apart(found, model.wanted(2)) < 1e-13
    before = {name: total.clone() for name, total in found.items()}
    with torch.enable_grad():
        model.pixels.requires_grad_()
        model.loss().backward()
    assert all(torch.equal(found[name], before[name]) for name in found)


def test_one_forward_pass_serves_several_losses():
    """As for an expectation over classes: what each of them adds is its own."""
    model = Model()
    twice = model.zeros()
    with add_gradients(model.modules, twice, 2):
        loss = model.loss()
        loss.backward(retain_graph=True)
        (2 * loss).backward()
    assert apart(twice, {name: 5 * total for name, total in model.wanted(2).items()}) < 1e-13


def test_parameters_are_not_differentiated():
    model = Model()
    model.sums(2, slice(None))
    assert all(parameter.grad is None for parameter in model.parameters.values())


def test_modules_that_are_not_known_are_refused():
    odd = nn.Sequential(nn.Linear(2, 2), nn.Conv1d(2, 2, 1))
    sums = {f"odd.{name}": parameter for name, parameter in odd.named_parameters()}
    refusal = pytest.raises(ModelError, match=r"odd\.1\.weight: belongs to a Conv1d; .* Linear, LayerNorm, CLIP")
    with refusal, add_gradients({"odd": odd}, sums, 2):
        pass
    assert not odd[0]._forward_hooks


def test_the_gradient_of_a_whole_loss_in_parts():
    model = Model()
    found = model.zeros()
    (whole,) = model.gradients([slice(None)])
    for rows in (slice(0, 2), slice(2, 5)):
        add_gradient(model.loss(rows), model.parameters, found, 0.5)
    assert apart(found, {name: each / 2 for name, each in zip(found, whole, strict=True)}) < 1e-13


@pytest.mark.parametrize(
    ("geometry", "images"),
    [
        (Geometry(patch_size=32), 32),
        (Geometry(patch_size=16), 10),
        (
            Geometry(
                hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, patch_size=14
            ),
            3,
        ),
    ],
    ids=["ViT-B/32", "ViT-B/16", "ViT-L/14"],
)
def test_images_at_once(geometry: Geometry, images: int):
    with torch.device("meta"):
        tower = CLIPVisionModel(CLIPVisionConfig(**geometry.model_dump()))
    assert images_at_once(tower) == images
    assert [len(part) for part in chunks(list(range(2 * images + 1)), tower)] == [images, images, 1]
