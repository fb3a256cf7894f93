"""Gradients of a loss over many images, added up a few images at a time."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clipfuse.checkpoints.geometry import Geometry
from clipfuse.shapes import Float

if TYPE_CHECKING:
    from transformers import CLIPVisionModel

ACTIVATIONS = 3 << 29
"""Bytes of activations that a pass may keep for its way back, about."""

MOST = 32
"""Images in a pass: more make its products no faster."""


def chunks(rows: list[int], tower: "CLIPVisionModel") -> Iterator[list[int]]:
    """Rows in turn, as many at a time as a pass may take: by the model's shape, so always the same."""
    size = images_at_once(tower)
    return (rows[at : at + size] for at in range(0, len(rows), size))


def images_at_once(tower: "CLIPVisionModel") -> int:
    """Images whose activations take no more than `ACTIVATIONS`: 32 of ViT-B/32, 10 of ViT-B/16, 3 of ViT-L/14."""
    shape = Geometry.model_validate(tower.config.to_dict())
    tokens = (shape.image_size // shape.patch_size) ** 2 + 1
    layer = 4 * tokens * (9 * shape.hidden_size + 3 * shape.intermediate_size)
    return max(1, min(MOST, ACTIVATIONS // (layer * shape.num_hidden_layers)))


def add_gradient(
    loss: Float[Tensor, ""], parameters: Mapping[str, Tensor], totals: Mapping[str, Tensor], factor: float = 1.0
) -> None:
    """Add factor · ∂loss/∂θ to `totals`, in place, by parameter name. Takes one gradient of the model meanwhile."""
    found = torch.autograd.grad(loss, list(parameters.values()))
    for name, gradient in zip(parameters, found, strict=True):
        totals[name].add_(gradient.to(totals[name].device), alpha=factor)
