"""What is kept of a model on a split: a row for each image, from which everything else is counted."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from clipfuse.shapes import Float, Int

Columns = dict[str, Tensor]
"""A value for each image, by name:

place        int32    place of the image in its split, unreadable ones not counted
prediction   int32    the label with the largest logit, the first of equals
rank         int32    classes that come before the true one: 0 is a correct prediction
margin       float32  largest logit − the second, in logits
confidence   float32  softmax of the largest logit
loss         float32  cross-entropy in nats
entropy      float32  of the softmax, nats
tempered_confidence, tempered_loss   the same of logits ÷ temperature, where one was fitted
joint        int32    the prediction in the joint head of all tasks, counted through all tasks' classes
logits       float32  (class,), only while a temperature is being fitted
"""


@dataclass(frozen=True)
class Score:
    """What one model did on one split."""

    model: str
    task: str
    columns: Columns
    labels: Int[Tensor, "image"]
    classes: int
    fingerprint: str
    """sha256 over the encoded images and labels, hex."""
    parameters: int = 0
    """Of the model's vision tower."""
    seconds: float = 0.0
    """Spent in this model's forward passes, on all devices together."""
    batch_size: int = 0
    unreadable: int = 0
    """Images that could not be read and were left out."""
    temperature: float | None = None
    """What logits were divided by for the tempered columns."""
    fitted: float | None = None
    """The temperature that fits these images best."""
    reused: bool = False
    """Whether it was measured before, and kept."""

    @property
    def n(self) -> int:
        return len(self.labels)

    @cached_property
    def correct(self) -> int:
        """Images whose label was predicted."""
        return int((self.columns["rank"] == 0).sum())

    @cached_property
    def top5(self) -> int:
        """Images whose label is among the five largest logits."""
        return int((self.columns["rank"] < 5).sum())

    @cached_property
    def loss(self) -> float:
        """Sum of the images' cross-entropies, nats, added in float64 in the images' order."""
        return float(self.columns["loss"].double().sum())

    def named(self, model: str, task: str, parameters: int) -> "Score":
        """The same score under a candidate's and a task's name."""
        return replace(self, model=model, task=task, parameters=parameters)


def columns_of(
    logits: Float[Tensor, "batch class"], labels: Int[Tensor, "batch"], temperature: float | None = None
) -> Columns:
    """The columns of a batch, on the logits' device."""
    size, classes = logits.shape
    top = logits.topk(min(2, classes), dim=-1).values
    prediction = logits.argmax(-1)
    true = logits.gather(1, labels[:, None])
    earlier = torch.arange(classes, device=logits.device)[None] < labels[:, None]
    rank = ((logits > true) | ((logits == true) & earlier)).sum(-1)
    found = {
        "prediction": prediction.int(),
        "rank": rank.int(),
        "margin": top[:, 0] - top[:, -1],
        **softness(logits, true, top[:, 0]),
        "entropy": torch.special.entr(logits.softmax(-1)).sum(-1),
    }
    if temperature is not None:
        tempered = softness(logits / temperature, true / temperature, top[:, 0] / temperature)
        found |= {f"tempered_{name}": values for name, values in tempered.items()}
    assert all(len(values) == size for values in found.values())
    return found


def softness(logits: Tensor, true: Tensor, largest: Tensor) -> Mapping[str, Tensor]:
    """Confidence and loss."""
    total = logits.logsumexp(-1)
    return {"confidence": (largest - total).exp(), "loss": total - true[:, 0]}


@dataclass
class Part:
    """What was found on one block, and what belongs to it besides."""

    columns: Columns
    labels: Int[Tensor, "image"]
    """Of the whole block."""
    digest: str
    """sha256 over the block's encoded images and labels, hex."""
    unreadable: int = 0
    seconds: float = 0.0
    batch_size: int = 0


def joined(parts: Sequence[Columns]) -> Columns:
    """Columns of all parts, in the images' order."""
    first = parts[0]
    whole = {name: torch.cat([part[name] for part in parts]) for name in first}
    order = whole["place"].argsort()
    return {name: values[order] for name, values in whole.items()}
