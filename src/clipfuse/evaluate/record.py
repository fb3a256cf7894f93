"""Records: one line of JSON for each model on each task, with all that is needed to get it again."""

import json
import platform
import resource
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from clipfuse.checkpoints.writer import write_text
from clipfuse.config import Config
from clipfuse.errors import ConfigError
from clipfuse.version import __version__

SCHEMA = 3
PACKAGES = ("torch", "transformers", "safetensors", "numpy", "pillow")


class Environment(Config):
    """Where and when a figure was made; left out of comparisons."""

    seconds: float
    """Spent in forward passes, on all devices together."""
    reused: bool = False
    """Whether the score was measured before, then `seconds` is of that time."""
    processes: int = 1
    peak_memory: int
    """Largest resident size of the process so far, bytes."""
    device: str
    versions: Mapping[str, str]
    git_commit: str | None = None
    host: str
    time: str
    """ISO 8601, UTC."""


class Record(Config):
    """What one model did on one split of one task."""

    schema_version: int = SCHEMA
    model: str
    """Name in the run."""
    role: Literal["base", "expert", "merged", "other"]
    recipe: Mapping[str, Any] | None
    """Of a merged model: method, settings, edits, finishes, seed, the pool with revisions and hashes."""
    source: Mapping[str, Any] | None
    """Of any other model: path, revision, hashes."""
    base: str
    """The CLIP whose text encoder, projection and processor were used."""
    parameters: int
    """Of the vision tower."""
    task: str
    split: str
    classes: int
    data: Mapping[str, Any] = {}
    """Where the images come from: hub data set, configuration, commit and split, or folder."""
    chosen: Mapping[str, Any] = {}
    """How they were chosen, if not all of them: `carved` from train (share, seed), to a `limit` (images, seed)."""
    fingerprint: str
    """sha256 over the encoded images and labels."""
    corruption: Mapping[str, Any] | None = None
    """Name, severity and seed of what was done to the images."""
    limit: int | None
    """Images asked for; None is all."""
    n: int
    """Images."""
    unreadable: int = 0
    """Images that could not be read and were left out."""
    correct: int
    """Images whose label was predicted."""
    top5: int
    """Images whose label is among the five largest logits."""
    accuracy: float
    """correct / n."""
    interval: Sequence[float]
    """Wilson 95 % interval of the accuracy."""
    loss: float
    """Sum of the images' cross-entropies, nats: n times the NLL."""
    ece: float
    """Expected calibration error, 15 bins."""
    entropy: float | None = None
    """Mean entropy of the predictions, nats."""
    val: Mapping[str, Any] | None = None
    """Images `n` and `correct` ones of the val split, where a temperature was fitted on it, and how it was chosen."""
    temperature: float | None = None
    """What logits were divided by for the tempered figures, fitted on the val split."""
    tempered_loss: float | None = None
    tempered_ece: float | None = None
    per_class: Sequence[Sequence[int]]
    """Images and correct ones of each class; their ratio is the class's recall."""
    confused: Sequence[tuple[str, str, int]] = ()
    """The classes that were mistaken for another most often: true class, prediction, images."""
    joint: Mapping[str, Any] | None = None
    """Of the joint head of all tasks: `correct`, `interval`, and `as_task`, images by the task that was predicted."""
    normalised: float | None = None
    """Accuracy ÷ that of the task's own expert on the same images; None where that was not measured."""
    over_base: float | None = None
    """Accuracy − that of the base on the same images; None where that was not measured."""
    over_expert: float | None = None
    """Accuracy − that of the task's own expert on the same images; None where that was not measured."""
    needs_task_id: bool = False
    """Whether the model was told which task an image is from, which others are not."""
    merged_task: bool | None = None
    """Of a merged model: whether an expert of this task is in it; if not, the figure is of zero-shot retention."""
    uses: Sequence[str] = ()
    """Data that the method saw, and the choice of its settings."""
    seen: Sequence[Mapping[str, Any]] = ()
    """The same in numbers, a row for each rule, task and split: `images`, whether `labels`, `passes` over them."""
    dtype: str
    """Of the forward pass: float32, or a lower precision."""
    versus_float32: Mapping[str, int] | None = None
    """Of a lower precision, on the first block: images `n`, predictions that `differ`, `correct` of both."""
    batch_size: int
    """Images a forward pass."""
    environment: Environment | None = None

    @property
    def transductive(self) -> bool:
        """Whether the method saw the images that it is scored on, or others of their split."""
        same = any(row.get("fingerprint") == self.fingerprint for row in self.seen)
        return same or any(use.startswith(self.split) for use in self.uses)

    @property
    def title(self) -> str:
        """What tables call the model: a transductive one is marked."""
        return f"{self.model} (transductive)" if self.transductive else self.model

    def same_as(self, other: "Record") -> bool:
        """Whether two records agree.

        The environment does not count, nor where images were (the fingerprint says what they are), nor a hash that one
        side does not know.
        """
        mine, its = (record.model_dump(mode="json", exclude={"environment", "data"}) for record in (self, other))
        return same(mine, its)


def same(a: Any, b: Any, hashes: bool = False) -> bool:
    """Equality of two trees in which a `null` among `hashes` (the values of `files`) equals anything."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[key], b[key], hashes or key == "files") for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y, hashes) for x, y in zip(a, b, strict=True))
    return a == b or (hashes and None in (a, b))


def environment(seconds: float, device: str, **facts: Any) -> Environment:
    """The environment of a figure that was just made; `facts` are fields of its own."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Environment(
        seconds=round(seconds, 3),
        peak_memory=peak if sys.platform == "darwin" else peak * 1024,
        device=device,
        versions={"clipfuse": __version__, "python": platform.python_version()}
        | {package: metadata.version(package) for package in PACKAGES},
        git_commit=git_commit(),
        host=platform.node(),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        **facts,
    )


def git_commit() -> str | None:
    """Commit of the checkout that clipfuse runs from, if it is one."""
    git = Path(__file__).parents[3] / ".git"
    if not git.is_dir() or Path(__file__).parents[2].name != "src":
        return None
    try:
        head = (git / "HEAD").read_text().strip()
        name = head.removeprefix("ref: ")
        return (git / name).read_text().strip() if name != head else head
    except OSError:
        return None


def write_records(path: Path, records: Iterable[Record]) -> None:
    """One JSON object a line, whole or not at all."""
    write_text(path, "".join(record.model_dump_json() + "\n" for record in records))


def read_records(path: Path) -> list[Record]:
    """Records of a run. Raises ConfigError for a line that is not one."""
    from pydantic import ValidationError

    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        newer = [v for line in lines if (v := json.loads(line)["schema_version"]) > SCHEMA]
        if newer:
            raise ConfigError(f"{path}: schema {newer[0]} is newer than this clipfuse knows ({SCHEMA})")
        return [Record.model_validate_json(line) for line in lines]
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (ValidationError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{path}: is not a file of records (schema {SCHEMA})") from None
