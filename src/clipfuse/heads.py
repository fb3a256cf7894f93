"""Zero-shot heads: classes × templates → one unit vector a class; kept by content."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from clipfuse.checkpoints.writer import part_of
from clipfuse.errors import ModelError
from clipfuse.models.clip_base import ClipBase
from clipfuse.models.encoder import Encoder
from clipfuse.models.text import text_features
from clipfuse.shapes import Float
from clipfuse.tasks import Task

log = logging.getLogger(__name__)
VERSION = 1
"""Of how heads are made; counts up whenever their bits change."""


@dataclass(frozen=True)
class Head:
    """A linear classifier made of words: logits = scale · normalise(features) · weightsᵀ."""

    weights: Float[Tensor, "class embed"]
    """Unit rows, float32."""
    scale: float
    """exp(logit_scale) of the base."""
    base: str
    """Identity of the base whose text encoder made it."""

    def logits(self, encoder: Encoder, features: Float[Tensor, "batch embed"]) -> Float[Tensor, "batch class"]:
        """Raises ModelError if the features are another base's: they may fit in shape and be silently wrong."""
        if encoder.base != self.base:
            raise ModelError("a head does not belong to an encoder of another base: their CLIPs have other weights")
        unit = torch.nn.functional.normalize(features.float(), dim=-1)
        return self.scale * unit @ self.weights.to(unit.device).T

    @cached_property
    def key(self) -> str:
        """Digest of all that logits depend on."""
        facts = f"{self.base} {self.scale!r} {tuple(self.weights.shape)}".encode()
        return hashlib.sha256(facts + self.weights.contiguous().numpy().tobytes()).hexdigest()


@dataclass(frozen=True)
class JointHead:
    """All tasks' classes in one head, task after task: the model is not told which task an image is from."""

    head: Head
    starts: Mapping[str, int]
    """Where each task's classes begin."""

    @property
    def key(self) -> str:
        return f"{self.head.key} {sorted(self.starts.items())}"

    @property
    def ends(self) -> list[int]:
        """Where each task's classes end, in order."""
        return [*list(self.starts.values())[1:], len(self.head.weights)]


def joint_head(heads: Mapping[str, Head]) -> JointHead:
    """The heads of several tasks, in order, as one."""
    starts, count = {}, 0
    for task, head in heads.items():
        starts[task] = count
        count += len(head.weights)
    first = next(iter(heads.values()))
    return JointHead(Head(torch.cat([h.weights for h in heads.values()]), first.scale, first.base), starts)


def zero_shot_heads(base: ClipBase, tasks: Sequence[Task], folder: Path | None = None) -> dict[str, Head]:
    """Heads by task name. Those that `folder` keeps are read; prompts of the others are encoded together.

    A class is the mean of its prompts' unit embeddings over the templates, made unit length again (Radford et al.,
    2021, section 3.1.4).

    Raises:
        ModelError: the base is no full CLIP, or has no tokenizer.
    """
    keys = {task.name: head_key(base, task) for task in tasks} if folder else {}
    heads = {name: head for name, key in keys.items() if (head := read_head(folder, key, base))}
    if made := make_heads(base, [task for task in tasks if task.name not in heads]):
        for name, head in made.items():
            write_head(folder, keys.get(name), head)
        heads |= made
    return {task.name: heads[task.name] for task in tasks}


def make_heads(base: ClipBase, tasks: Sequence[Task]) -> dict[str, Head]:
    """Heads from the text encoder, all prompts of the tasks together."""
    if not tasks:
        return {}
    prompts = sorted({prompt for task in tasks for row in task.prompts() for prompt in row})
    model = base.text_model()
    tokens = base.tokens(prompts, model.config.max_position_embeddings)
    embeddings = text_features(model, tokens)
    place = {prompt: row for row, prompt in enumerate(prompts)}
    heads = {}
    for task in tasks:
        rows = torch.tensor([[place[prompt] for prompt in row] for row in task.prompts()])
        means = embeddings[rows].mean(1)  # (class, embed)
        heads[task.name] = Head(torch.nn.functional.normalize(means, dim=-1), base.logit_scale, base.identity)
    return heads


def head_key(base: ClipBase, task: Task) -> str:
    """Digest of all that a head is made of: words, weights, tokenizer, and what the bits depend on besides."""
    versions = [torch.__version__, *map(metadata.version, ("transformers", "tokenizers"))]
    facts = [VERSION, base.identity, list(task.classes), list(task.templates), "float32", *versions]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def read_head(folder: Path | None, key: str, base: ClipBase) -> Head | None:
    """A kept head; None if there is none, or it is damaged."""
    if folder is None:
        return None
    with suppress(OSError, SafetensorError, KeyError, ValueError, TypeError):
        path = folder / f"{key}.safetensors"
        with safe_open(path, "pt") as file:
            facts, weights = file.metadata(), file.get_tensor("weights")
        head = Head(weights, float(facts["scale"]), base.identity)
        if head.key == facts["key"]:
            with suppress(OSError):  # a cache that may only be read
                os.utime(path)
            return head
        log.warning("heads: %s is damaged; it is made again", path)
    return None


def write_head(folder: Path | None, key: str | None, head: Head) -> None:
    """Whole or not at all; where that is refused, nothing is kept."""
    if folder is None or key is None:
        return
    temporary = part_of(folder / f"{key}.safetensors")
    with suppress(OSError, SafetensorError):
        try:
            save_file({"weights": head.weights.contiguous()}, temporary, {"scale": repr(head.scale), "key": head.key})
            temporary.replace(folder / f"{key}.safetensors")
        finally:
            temporary.unlink(missing_ok=True)
