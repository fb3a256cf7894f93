"""What is scored, and how: all that the bits of a score depend on."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata

import torch

from clipfuse.data import ImageSet
from clipfuse.evaluate.store import ScoreStore
from clipfuse.evaluate.workers import Workers
from clipfuse.heads import Head, JointHead
from clipfuse.models.encoder import Encoder
from clipfuse.version import __version__

CPU, ALONE = torch.device("cpu"), Workers()
VERSION = 2
"""Of what is computed; counts up whenever the bits of a score change."""
MEMORY = 4 << 30
"""Bytes of weights that are loaded at a time."""


@dataclass
class Tally:
    """How far a model is on a split, for whoever watches."""

    model: str
    task: str
    images: int
    n: int = 0
    correct: int = 0


Progress = Callable[[int, Tally], None]
"""Told the number of images that were scored since the last call, and of what."""


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
    identity: Callable[[], str] | None = None
    """Digest of its weights, if that is known without loading it."""


@dataclass(frozen=True)
class Scoring:
    """How models are scored: what the bits of a score depend on besides model, images and head."""

    device: torch.device = CPU
    dtype: str = "float32"
    """Of the forward passes: float32, bfloat16, float16, tf32."""
    compiled: bool = False
    """Whether vision towers go through `torch.compile`."""
    batch_size: int | None = None
    """Images a forward pass; None is automatic."""
    fit: bool = False
    """Fit each model's temperature on each split."""
    temperatures: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """(model, task) → what its logits are divided by for the tempered columns."""
    joint: JointHead | None = None
    """All tasks' classes in one head."""
    workers: Workers = ALONE
    store: ScoreStore | None = None
    """Where scores are kept and found again; None keeps none."""
    memory: int = MEMORY

    def key(self, model: str, images: ImageSet, head: Head, temperature: float | None) -> str | None:
        """Digest of all that a score depends on; None where the images have no identity."""
        preprocess = images.preprocess
        facts_of_images = (preprocess.key, str(preprocess), images.unreadable, repr((images.corruption, images.most)))
        source = images.split.key(*facts_of_images)
        if source is None or self.store is None:
            return None
        facts = [
            VERSION, __version__, torch.__version__, metadata.version("transformers"), model, source,
            head.key, self.joint and self.joint.key, name_of(self.device), self.dtype, self.compiled, self.batch_size,
            self.fit, temperature, self.workers.count,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def name_of(device: torch.device) -> str:
    """What the bits of a forward pass depend on: the kind of GPU, or the CPU's vector units and threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()}"


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
