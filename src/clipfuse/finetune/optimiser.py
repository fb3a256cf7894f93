"""The optimiser of a recipe, and the norm of what it is given."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from clipfuse.finetune.recipe import Recipe

if TYPE_CHECKING:
    from accelerate import Accelerator


def make_optimizer(parameters: Mapping[str, nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """All parameters in one group, with the fused kernels."""
    values = list(parameters.values())
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(values, recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    betas = (recipe.betas[0], recipe.betas[1])
    return kind(values, recipe.lr, betas, weight_decay=recipe.weight_decay, fused=True)


def gradient_norm(accelerator: "Accelerator", parameters: Mapping[str, nn.Parameter]) -> Tensor:
    """Of all gradients together, (); 0 with float16, whose scaler looks for overflows itself."""
    if accelerator.scaler is not None:
        return torch.zeros((), device=accelerator.device)
    return get_total_norm([value.grad for value in parameters.values() if value.grad is not None])


def clip(accelerator: "Accelerator", parameters: Mapping[str, nn.Parameter], most: float, norm: Tensor) -> None:
    """Scale all gradients down to the norm `most`, if theirs is larger."""
    if accelerator.scaler is not None:  # they are still scaled, and so is their norm
        accelerator.clip_grad_norm_(list(parameters.values()), most)
    else:
        clip_grads_with_norm_(list(parameters.values()), most, norm)
