"""What fits the memory, found out by trying."""

import gc
from collections.abc import Iterator

import torch
from torch import nn

from clipfuse.evaluate.forward import out_of_memory
from clipfuse.finetune.recipe import Recipe
from clipfuse.finetune.trained import Trained, checkpoint_activations


def advice(trained: Trained, recipe: Recipe, device: torch.device, side: int, share: int, begun: bool) -> str:
    """One line for a training that ran out of memory: the settings with which a step would fit.

    Args:
        trained: Its tower, on the device as far as that went.
        recipe: Its settings.
        device: Where it ran.
        side: Of an image, pixels.
        share: Images of one task that a process takes in a step.
        begun: Whether the optimiser has its moments already.
    """
    size = recipe.micro_batch_size or share
    told = f"out of memory on {device} with {size} images in a forward pass"
    for checkpointing, images in choices(recipe, size):
        if fits(trained, device, side, images, checkpointing, begun):
            more = " gradient_checkpointing=true" if checkpointing and not recipe.gradient_checkpointing else ""
            return f"{told}; micro_batch_size={images}{more} fits (the batch of {recipe.batch_size} stays what it is)"
    smaller = "" if recipe.train == "lora" else ": train=lora needs less"
    return f"{told}; nor does a single image fit{smaller}"


def choices(recipe: Recipe, size: int) -> Iterator[tuple[bool, int]]:
    """(gradient checkpointing, images in a forward pass), the fastest first."""
    halves = [size >> k for k in range(1, size.bit_length())]
    if not recipe.gradient_checkpointing:
        yield from ((False, images) for images in halves)
    yield from ((True, images) for images in [size, *halves])


def fits(trained: Trained, device: torch.device, side: int, images: int, checkpointing: bool, begun: bool) -> bool:
    """Whether forward and backward pass of so many images work beside two moments of each parameter."""
    clear(trained.tower, device)
    if checkpointing:
        checkpoint_activations(trained.inner)
    try:
        trained.tower.to(device).train()
        moments = [torch.empty_like(p) for p in trained.parameters.values() for _ in range(0 if begun else 2)]
        pixels = torch.zeros(images, 3, side, side, device=device)
        trained.tower(pixel_values=pixels).pooler_output.float().sum().backward()
        del moments
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        return False
    finally:
        clear(trained.tower, device)
    return True


def clear(tower: nn.Module, device: torch.device) -> None:
    for parameter in tower.parameters():
        parameter.grad = None
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
