"""Zero-shot heads: classes × templates → one unit vector a class."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipfuse.errors import ModelError
from clipfuse.models.encoder import ClipBase, Encoder
from clipfuse.shapes import Float
from clipfuse.tasks import Task

BATCH = 256
"""Prompts a forward pass of the text encoder."""


@dataclass(frozen=True)
class Head:
    """A linear classifier made of words: logits = scale · normalise(features) · weightsᵀ."""

    weights: Float[Tensor, "class embed"]
    """Unit rows, float32."""
    scale: float
    """exp(logit_scale) of the base."""
    base: str
    """The base whose text encoder made it."""

    def logits(self, encoder: Encoder, features: Float[Tensor, "batch embed"]) -> Float[Tensor, "batch class"]:
        """Raises ModelError if the features are another base's: they may fit in shape and be silently wrong."""
        if encoder.base != self.base:
            raise ModelError(f"a head of {self.base} does not belong to an encoder of {encoder.base}")
        unit = torch.nn.functional.normalize(features.float(), dim=-1)
        return self.scale * unit @ self.weights.to(unit.device).T


def zero_shot_heads(base: ClipBase, tasks: Sequence[Task]) -> dict[str, Head]:
    """Heads by task name; all prompts of the suite are encoded together, short ones with short ones.

    A class is the mean of its prompts' unit embeddings over the templates, made unit length again (Radford et al.,
    2021, section 3.1.4).
    """
    prompts = sorted({prompt for task in tasks for row in task.prompts() for prompt in row}, key=lambda p: (len(p), p))
    batches = [base.text_features(prompts[i : i + BATCH]) for i in range(0, len(prompts), BATCH)]
    place = {prompt: row for row, prompt in enumerate(prompts)}
    embeddings = torch.cat(batches)  # (prompt, embed)
    heads = {}
    for task in tasks:
        rows = torch.tensor([[place[prompt] for prompt in row] for row in task.prompts()])
        means = embeddings[rows].mean(1)  # (class, embed)
        heads[task.name] = Head(torch.nn.functional.normalize(means, dim=-1), base.logit_scale, base.ref)
    return heads
