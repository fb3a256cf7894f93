"""What models are measured on: tasks, images, heads and preprocessing of one base."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from clipfuse.cache import cache_folder
from clipfuse.data import Corruption, ImageSet, Preprocess, make_ready, open_images, open_split, read_preprocess
from clipfuse.data.corruptions import CORRUPTIONS, find_corruption
from clipfuse.errors import ConfigError, ModelError
from clipfuse.evaluate import Candidate, Score, ScoreStore, Scoring, evaluate
from clipfuse.evaluate.workers import find_workers
from clipfuse.heads import Head, joint_head, zero_shot_heads
from clipfuse.models.clip_base import ClipBase, open_base
from clipfuse.models.encoder import Encoder, VisionEncoder
from clipfuse.models.per_task import PerTaskEncoder
from clipfuse.progress import Stage, silent
from clipfuse.run.config import MeasureConfig
from clipfuse.run.tasks import draw_tiny
from clipfuse.tasks import Task
from clipfuse.tiny.task import SPLITS


@dataclass(frozen=True)
class Bench:
    """One base's heads, and the images of some tasks' splits."""

    base: ClipBase
    tasks: tuple[Task, ...]
    images: Mapping[str, tuple[ImageSet, ...]]
    """By name of the split, in the tasks' order."""
    heads: Mapping[str, Head]
    preprocess: Preprocess
    scoring: Scoring
    config: MeasureConfig
    corruptions: tuple[Corruption | None, ...] = (None,)
    """What is done to the images that are reported on; None is nothing."""

    @property
    def device(self) -> torch.device:
        return self.scoring.device

    def chosen(self, split: str, task: str) -> Mapping[str, Any]:
        """How a task's images of a split were chosen, if not all of them are there."""
        return next(images.split.chosen for images in self.images[split] if images.split.task == task)

    def ready(self, candidate: Candidate, scoring: Scoring) -> Candidate:
        """A candidate that opens on the device, in the precision of the forward passes."""
        dtype = torch.float32 if scoring.dtype == "tf32" else getattr(torch, scoring.dtype)

        def opened() -> Encoder:
            encoder: Any = candidate.open()
            encoder = encoder.to(self.device, dtype)
            tower = encoder.encoder if isinstance(encoder, PerTaskEncoder) else encoder
            if scoring.compiled and isinstance(tower, VisionEncoder):
                tower.vision = torch.compile(tower.vision)  # type: ignore[assignment]
            return encoder

        return replace(candidate, open=opened)

    def score(
        self,
        candidates: Sequence[Candidate],
        split: str,
        stage: Stage,
        corruption: Corruption | None = None,
        most: int | None = None,
        on_val: Mapping[tuple[str, str], Score] | None = None,
        **scoring: Any,
    ) -> list[Score]:
        """Scores of candidates on every task's `split`, on `most` blocks, with the temperatures that were fitted
        `on_val`; `scoring` replaces fields of the bench's.
        """
        sets = [replace(images, corruption=corruption, most=most) for images in self.images[split]]
        images = sum(s.size for s in sets for c in candidates if c.tasks is None or s.split.task in c.tasks)
        temperatures = {key: score.fitted for key, score in (on_val or {}).items() if score.fitted is not None}
        how = replace(self.scoring, temperatures=temperatures, **scoring)
        images = -(-images // how.workers.count)
        ready = [self.ready(candidate, how) for candidate in candidates]
        what = f"evaluate on {split}" + (f", {corruption}" if corruption else "")
        with stage(what, images, "img") as told:
            return evaluate(ready, sets, self.heads, how, lambda count, tally: told(count, tally))

    def on_val(self, candidates: Sequence[Candidate], stage: Stage) -> dict[tuple[str, str], Score]:
        """(model, task) → the score on val, with the temperature that fits it; empty unless the bench calibrates."""
        if not self.config.calibrate:
            return {}
        scores = self.score(candidates, "val", stage, fit=True, joint=None)
        return {(score.model, score.task): score for score in scores}

    def in_float32(
        self, candidates: Sequence[Candidate], split: str, stage: Stage, corruption: Corruption | None = None
    ) -> dict[tuple[str, str], Score]:
        """(model, task) → the score in float32 on the first block, where the passes have a lower precision."""
        if self.scoring.dtype == "float32":
            return {}
        scores = self.score(candidates, split, stage, corruption, most=1, dtype="float32", joint=None)
        return {(score.model, score.task): score for score in scores}


def open_bench(
    tasks: Sequence[Task],
    base: str,
    splits: Sequence[str],
    config: MeasureConfig,
    stage: Stage = silent,
) -> Bench:
    """Open the splits first (they fail soonest), then the base, then encode prompts and decode images."""
    workers = find_workers(config.device)
    device = workers.device or as_device(config.device)
    corruptions = find_corruptions(config)
    if config.precision == "tf32" and device.type != "cuda":
        raise ConfigError(f"precision: tf32 is of CUDA devices; forward passes are on {device.type}")
    wanted = [*splits, *(["val"] if config.calibrate and "val" not in splits else [])]
    with workers.first_of_machine():
        draw_tiny(tasks, [name for name in wanted if name in SPLITS], stage)
        opened = {name: [open_split(task, name, config.limit, config.seed) for task in tasks] for name in wanted}
        clip = open_base(base)
        preprocess = read_preprocess(clip.folder)
        if preprocess.crop != (side := clip.geometry.image_size):
            raise ModelError(f"{base}: its processor gives images of {preprocess.crop} px, its tower takes {side}")
        images = {
            name: tuple(open_images(split, preprocess, config.image_cache, config.unreadable) for split in found)
            for name, found in opened.items()
        }
        heads = zero_shot_heads(clip, tasks, cache_folder("heads"))
        decode([images for found in images.values() for images in found], stage)
    scoring = Scoring(
        device=device,
        dtype=config.precision,
        compiled=config.compile,
        batch_size=None if config.batch_size == "auto" else config.batch_size,
        joint=joint_head(heads) if config.joint else None,
        workers=workers,
        store=ScoreStore(cache_folder("scores")) if config.reuse else None,
    )
    return Bench(clip, tuple(tasks), images, heads, preprocess, scoring, config, corruptions)


def decode(sets: Sequence[ImageSet], stage: Stage) -> None:
    """Decode into the cache what it lacks. Raises TaskError for images that cannot be read."""
    if lacking := sum(images.lacking for images in sets):
        with stage("decode images, once", lacking, "img") as told:
            for images in sets:
                make_ready(images, told)
    else:
        for images in sets:
            make_ready(images)


def find_corruptions(config: MeasureConfig) -> tuple[Corruption | None, ...]:
    """What a configuration does to the test images. Raises TaskError, ConfigError."""
    names = [config.corruption] if isinstance(config.corruption, str) else list(config.corruption or ["none"])
    names = [name for given in names for name in (CORRUPTIONS if given == "all" else [given])]
    severities = [config.severity] if isinstance(config.severity, int) else config.severity
    if config.corruption is None and config.severity != MeasureConfig.model_fields["severity"].default:
        raise ConfigError("severity: is of corruptions; name one, as in corruption=jpeg, or all")
    if not severities or not names:
        raise ConfigError("corruption, severity: take at least one of each")
    if wrong := next((severity for severity in severities if not 1 <= severity <= 5), None):
        raise ConfigError(f"severity: takes 1 to 5 (found {wrong})")
    found: list[Corruption | None] = []
    for name in names:
        known = None if name == "none" else find_corruption(name)
        found += [Corruption(known, severity, config.seed) for severity in severities] if known else [None]
    return tuple(dict.fromkeys(found))


def as_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises ConfigError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError
    except RuntimeError:
        raise ConfigError(f"device: takes auto, cpu, cuda, cuda:1 or mps (found {name!r})") from None
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device: {name!r} cannot be used ({str(error).splitlines()[0]})") from None
    return device
