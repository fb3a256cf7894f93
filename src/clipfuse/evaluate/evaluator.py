"""Many models on many tasks: images are decoded once for a group of models, counts are exact."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clipfuse.data import Preprocess, Split, blocks
from clipfuse.errors import ModelError
from clipfuse.heads import Head
from clipfuse.models.encoder import Encoder

BATCH = 128
"""Images a forward pass."""
MEMORY = 4 << 30
"""Bytes of weights that are loaded at a time."""

Progress = Callable[[int], None]
"""Told the number of images that were scored since the last call."""


@dataclass(frozen=True)
class Candidate:
    """A model to evaluate; `open` loads it when its turn comes."""

    name: str
    open: Callable[[], Encoder]
    bytes: int
    """Memory that `open` will take."""
    parameters: int = 0
    """Of its vision tower."""
    tasks: frozenset[str] | None = None
    """Tasks to be scored on; None is all."""


@dataclass
class Score:
    """What one model did on one split: exact counts, and predictions per image."""

    model: str
    task: str
    parameters: int = 0
    """Of the model's vision tower."""
    n: int = 0
    correct: int = 0
    loss: float = 0.0
    """Sum of the images' cross-entropies, nats, float64."""
    seconds: float = 0.0
    """Spent in this model's forward passes."""
    fingerprint: str = ""
    """sha256 over the encoded images and labels, hex."""
    predictions: list[Tensor] = field(default_factory=list)
    """Predicted labels, (block,) each."""


def evaluate(
    candidates: Sequence[Candidate],
    splits: Sequence[Split],
    heads: Mapping[str, Head],
    preprocess: Preprocess,
    *,
    batch_size: int = BATCH,
    device: torch.device | str = "cpu",
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> list[Score]:
    """Score every candidate on every split; scores in the candidates' order, then the splits'.

    Raises:
        TaskError: an image that cannot be read.
        ModelError: two candidates or tasks of one name, or a head that does not belong to a candidate's base.
    """
    for what, names in (("models", [c.name for c in candidates]), ("tasks", [s.task for s in splits])):
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ModelError(f"two {what} are called {twice!r}; scores are told apart by name")
    scores: dict[tuple[str, str], Score] = {}
    for group in groups(candidates, memory):
        opened = [(candidate, candidate.open()) for candidate in group]
        for split in splits:
            todo = [(c, encoder) for c, encoder in opened if c.tasks is None or split.task in c.tasks]
            if not todo:
                continue
            digest = hashlib.sha256()
            for candidate, _ in todo:
                scores[candidate.name, split.task] = Score(candidate.name, split.task, candidate.parameters)
            for block in blocks(split, preprocess):
                digest.update(block.digest)
                for candidate, encoder in todo:
                    count(
                        scores[candidate.name, split.task],
                        encoder, heads[split.task], block.pixels, block.labels, preprocess, batch_size, device,
                    )  # fmt: skip
                    if progress:
                        progress(len(block.labels))
            for candidate, _ in todo:
                scores[candidate.name, split.task].fingerprint = digest.hexdigest()
            del todo
        del opened  # before the next group is loaded
    return [scores[c.name, s.task] for c in candidates for s in splits if (c.name, s.task) in scores]


def groups(candidates: Sequence[Candidate], memory: int) -> Iterator[list[Candidate]]:
    """Candidates in order, as many at a time as fit the memory, at least one."""
    group: list[Candidate] = []
    used = 0
    for candidate in candidates:
        if group and used + candidate.bytes > memory:
            yield group
            group, used = [], 0
        group.append(candidate)
        used += candidate.bytes
    if group:
        yield group


@torch.no_grad()
def count(
    score: Score,
    encoder: Encoder,
    head: Head,
    pixels: Tensor,
    labels: Tensor,
    preprocess: Preprocess,
    batch_size: int,
    device: torch.device | str,
) -> None:
    """Add one block of images to a score."""
    began = time.perf_counter()
    predictions = []
    for start in range(0, len(labels), batch_size):
        batch = preprocess.normalise(pixels[start : start + batch_size].to(device))
        logits = head.logits(encoder, encoder.features(batch, score.task if encoder.needs_task_id else None))
        if not logits.isfinite().all():
            raise ModelError(f"{score.model}: gives NaN or Inf on {score.task}")
        truth = labels[start : start + batch_size].to(logits.device)
        losses = torch.nn.functional.cross_entropy(logits, truth, reduction="none")
        score.loss += float(losses.double().sum())
        predictions.append(logits.argmax(-1).cpu())
    found = torch.cat(predictions)
    score.predictions.append(found)
    score.correct += int((found == labels).sum())
    score.n += len(labels)
    score.seconds += time.perf_counter() - began
