"""What is trained and validated on: rows of the tasks' splits, and what tells which they were."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from clipfuse.cache import cache_folder
from clipfuse.data import ImageSet, Preprocess, open_images, open_split, read_preprocess
from clipfuse.data.fingerprint import fingerprint
from clipfuse.data.gather import Rows
from clipfuse.data.image_cache import unreadable_rows
from clipfuse.data.splits import VAL_SHARE, Split, seeded_rows
from clipfuse.errors import ModelError, TaskError
from clipfuse.evaluate.workers import Workers
from clipfuse.finetune.batches import TrainingTask
from clipfuse.finetune.lora_layers import add_lora
from clipfuse.heads import Head, zero_shot_heads
from clipfuse.models.clip_base import ClipBase, open_base
from clipfuse.progress import Stage
from clipfuse.run.bench import decode
from clipfuse.run.finetune_config import FinetuneConfig
from clipfuse.run.tasks import draw_tiny
from clipfuse.tasks import Task

log = logging.getLogger(__name__)
VAL_SEED = 0
"""Of the tenth of train that is held out: evaluation's by default, so that both take the same images for val."""


@dataclass(frozen=True)
class Data:
    """A base with its heads, and the tasks' images."""

    base: ClipBase
    preprocess: Preprocess
    tasks: dict[str, TrainingTask]
    facts: dict[str, dict[str, Any]]
    """What tells which images a task's were."""


@dataclass(frozen=True)
class Chosen:
    """One task's images, opened."""

    images: ImageSet
    train: Sequence[int]
    rows: str
    """Digest of the choice among all rows of train."""
    held_out: int
    val: ImageSet | None
    val_rows: Sequence[int]


def open_data(tasks: Sequence[Task], base: str, config: FinetuneConfig, workers: Workers, stage: Stage) -> Data:
    """Open the splits first (they fail soonest), then the base, then encode prompts and decode images.

    Raises:
        TaskError, LocateError, ModelError, OutputError: what cannot be found, read, or kept.
    """
    with workers.first_of_machine():
        splits = ["train", *({"val"} if any("val" in task.splits for task in tasks) else ())]
        draw_tiny(tasks, splits, stage)
        trains = [open_split(task, "train") for task in tasks]
        clip = open_base(base)
        preprocess = read_preprocess(clip.folder)
        if preprocess.crop != (side := clip.geometry.image_size):
            raise ModelError(f"{base}: its processor gives images of {preprocess.crop} px, its tower takes {side}")
        check_fits_recipe(clip, config)
        chosen = [choose(task, train, preprocess, config) for task, train in zip(tasks, trains, strict=True)]
        heads = zero_shot_heads(clip, tasks, cache_folder("heads"))
        decode([images for found in chosen for images in (found.images, found.val) if images], stage)
        chosen = [readable(found) for found in chosen]
    opened = zip(tasks, chosen, strict=True)
    facts = {task.name: facts_of(task, found, heads[task.name]) for task, found in opened}
    found = {
        task.name: training_task(task, of_task, heads[task.name]) for task, of_task in zip(tasks, chosen, strict=True)
    }
    return Data(clip, preprocess, found, facts)


def check_fits_recipe(base: ClipBase, config: FinetuneConfig) -> None:
    """Raises ConfigError for a LoRA that does not fit the tower."""
    if config.train == "lora":
        from transformers import CLIPVisionConfig, CLIPVisionModel

        with torch.device("meta"):
            tower = CLIPVisionModel(CLIPVisionConfig(**base.geometry.model_dump()))
        add_lora(tower, config.rank, config.lora_alpha, 0.0, config.target_modules, False, torch.Generator())


def choose(task: Task, train: Split, preprocess: Preprocess, config: FinetuneConfig) -> Chosen:
    """The rows of a task that are trained on, and its val images: of its own split, or held out of train."""
    count, own = len(train), "val" in task.splits
    held = seeded_rows(count, max(1, int(VAL_SHARE * count)), VAL_SEED) if config.hold_out and not own else []
    out = set(held)
    rest = [row for row in range(count) if row not in out]
    if config.limit is not None and config.limit < len(rest):
        rest = [rest[place] for place in seeded_rows(len(rest), config.limit, config.seed)]
    digest = "all" if len(rest) == count else hashlib.sha256(np.asarray(rest, np.int64).tobytes()).hexdigest()
    looked_at = held
    if config.val_images is not None and config.val_images < len(held):
        looked_at = [held[place] for place in seeded_rows(len(held), config.val_images, config.seed)]
    how = preprocess, config.image_cache, config.unreadable
    if config.limit is None:  # all of train is decoded once, whatever is held out
        images = open_images(train, *how)
        val, val_rows, rows = (images if held else None), looked_at, rest
    else:
        images, rows = open_images(train.take(rest), *how), range(len(rest))
        val, val_rows = open_images(train.take(looked_at), *how) if held else None, range(len(looked_at))
    if own:
        val = open_images(open_split(task, "val", config.val_images, config.seed), *how)
        val_rows = range(len(val.split))
    return Chosen(images, rows, digest, len(held), val, val_rows)


def readable(found: Chosen) -> Chosen:
    """The same without images that cannot be read, where these are to be skipped. They are told in the log.

    Raises:
        TaskError: there is nothing to train on.
    """

    def but(images: ImageSet | None, rows: Sequence[int]) -> Sequence[int]:
        if images is None or images.entry is None or images.unreadable == "error":
            return rows
        bad = set(unreadable_rows(images.entry))
        kept = [row for row in rows if row not in bad]
        if len(kept) < len(rows):
            split = images.split
            log.warning(
                "%s %s: %d images cannot be read and are left out", split.task, split.name, len(rows) - len(kept)
            )
        return kept

    found = replace(found, train=but(found.images, found.train), val_rows=but(found.val, found.val_rows))
    if not found.train:
        raise TaskError(f"{found.images.split.task}: no image of train is left to train on")
    return found


def facts_of(task: Task, found: Chosen, head: Head) -> dict[str, Any]:
    """What tells which images and words these were."""
    origin = found.images.split.origin
    return {
        "name": task.name,
        "split": "train",
        "images": len(found.train),
        "classes": len(task.classes),
        "fingerprint": fingerprint(found.images),
        "rows": found.rows,
        "held_out": found.held_out,
        "val_images": len(found.val_rows),
        "words": hashlib.sha256(json.dumps([task.classes, task.templates]).encode()).hexdigest(),
        "head": head.key,
        "hub_dataset": task.hub_dataset,
        "revision": origin.get("commit") or origin.get("revision"),
        "licence": task.licence,
    }


def training_task(task: Task, found: Chosen, head: Head) -> TrainingTask:
    rows = Rows(found.images)
    val = Rows(found.val) if found.val else None  # its own: batches are loaded while it is read
    return TrainingTask(task.name, head, rows, found.train, val, found.val_rows)
