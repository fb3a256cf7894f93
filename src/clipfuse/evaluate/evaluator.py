"""Many models on many splits: images are read once for a group of models, counts are exact, work can be resumed."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from clipfuse.data import Block, ImageSet, blocks
from clipfuse.data.digests import split_digest
from clipfuse.data.image_cache import SHARD
from clipfuse.errors import ModelError, TaskError
from clipfuse.evaluate.calibration import fit_temperature
from clipfuse.evaluate.forward import Batches, automatic_batch, products
from clipfuse.evaluate.score import Columns, Part, Score, columns_of, joined
from clipfuse.evaluate.scoring import Candidate, Progress, Scoring, Tally, groups
from clipfuse.heads import Head
from clipfuse.models.encoder import Encoder


@dataclass
class Job:
    """One model on one split, and what is known of it so far."""

    candidate: Candidate
    images: ImageSet
    head: Head
    temperature: float | None
    key: str | None
    parts: dict[int, Part] = field(default_factory=dict)
    score: Score | None = None


def evaluate(
    candidates: Sequence[Candidate],
    sets: Sequence[ImageSet],
    heads: Mapping[str, Head],
    scoring: Scoring | None = None,
    progress: Progress | None = None,
) -> list[Score]:
    """Score every candidate on every split; scores in the candidates' order, then the splits'.

    Raises:
        TaskError: images that cannot be read.
        ModelError: two candidates or tasks of one name, a head that does not belong to a candidate's base, or NaN.
    """
    scoring = scoring or Scoring()
    for what, names in (("models", [c.name for c in candidates]), ("tasks", [s.split.task for s in sets])):
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ModelError(f"two {what} are called {twice!r}; scores are told apart by name")
    found: list[Score] = []
    for group in groups(candidates, scoring.memory):
        try:
            found += score_group(group, sets, heads, scoring, progress)
        except torch.OutOfMemoryError:  # outside of forward passes, which go on with smaller batches
            names = ", ".join(candidate.name for candidate in group)
            raise ModelError(f"{names}: the device {scoring.device} has too little memory") from None
    order = {candidate.name: place for place, candidate in enumerate(candidates)}
    return sorted(found, key=lambda score: order[score.model])


def score_group(
    group: Sequence[Candidate],
    sets: Sequence[ImageSet],
    heads: Mapping[str, Head],
    scoring: Scoring,
    progress: Progress | None,
) -> list[Score]:
    """Scores of models that are in memory together; those that are finished already are not loaded."""
    encoders: dict[str, Encoder] = {}
    jobs = []
    for candidate in group:
        if scoring.store and candidate.identity:
            identity = candidate.identity()
        else:
            encoders[candidate.name] = encoder = candidate.open()
            identity = encoder.identity() if scoring.store else ""
        for images in sets:
            task = images.split.task
            if candidate.tasks is None or task in candidate.tasks:
                temperature = scoring.temperatures.get((candidate.name, task))
                key = scoring.key(identity, images, heads[task], temperature)
                jobs.append(Job(candidate, images, heads[task], temperature, key))
    for job in jobs:
        if job.key and scoring.store and (kept := scoring.store.get(job.key)):
            job.score = kept.named(job.candidate.name, job.images.split.task, job.candidate.parameters)
    if scoring.workers.state:  # all must go the same way, also where one machine's cache knows more than another's
        known = scoring.workers.gather([job.score is not None for job in jobs])
        for number, job in enumerate(jobs):
            job.score = job.score if all(theirs[number] for theirs in known) else None
    for images in sets:
        todo = [job for job in jobs if job.images is images and job.score is None]
        for job in todo:
            if job.candidate.name not in encoders:
                encoders[job.candidate.name] = job.candidate.open()
        if todo:
            score_split(images, todo, encoders, scoring, progress)
        for job in jobs:
            if progress and job.images is images and job.score and job not in todo:
                score = job.score
                progress(score.n, Tally(score.model, score.task, score.n, score.n, score.correct))
    return [job.score for job in jobs if job.score]


def score_split(
    images: ImageSet,
    jobs: Sequence[Job],
    encoders: Mapping[str, Encoder],
    scoring: Scoring,
    progress: Progress | None,
) -> None:
    """Score several models on one split: block after block, in each all models that lack it."""
    share, store = scoring.workers.share, scoring.store
    batches, tallies = {}, {}
    # Together the processes cut blocks as one would, whatever memory made of their batches; one alone has no need to
    # cut them before a model does.
    first = min(first_batch(encoders[job.candidate.name], scoring) for job in jobs)
    cut = first if scoring.workers.count > 1 else SHARD
    for job in jobs:
        name = job.candidate.name
        job.parts = store.parts(job.key, share) if store and job.key else {}
        size = min((part.batch_size for part in job.parts.values()), default=None)
        batches[name] = Batches(size or first_batch(encoders[name], scoring), name)
        tallies[name] = Tally(name, images.split.task, -(-images.size // scoring.workers.count))
        for part in job.parts.values():
            tell(progress, tallies[name], part.columns)
    wanted = [number for number in range(images.count) if any(number not in job.parts for job in jobs)]
    for block in blocks(images, cut, scoring.device, wanted, share):
        for job in jobs:
            if block.number not in job.parts:
                name = job.candidate.name
                part = score_block(job, encoders[name], block, batches[name], scoring)
                job.parts[block.number] = part
                if store and job.key and images.count > 1:
                    store.put_part(job.key, share, block.number, part)
                tell(progress, tallies[name], part.columns)
    for job in jobs:
        job.score = finish_score(job, scoring)
        if store and job.key:
            store.put(job.key, job.score)


def first_batch(encoder: Encoder, scoring: Scoring) -> int:
    """The batch that a model begins with, before memory has a say."""
    return scoring.batch_size or automatic_batch(scoring.device, encoder.widest)


def tell(progress: Progress | None, tally: Tally, columns: Columns) -> None:
    if progress and columns:
        tally.n += len(columns["rank"])
        tally.correct += int((columns["rank"] == 0).sum())
        progress(len(columns["rank"]), tally)


@torch.no_grad()
def score_block(job: Job, encoder: Encoder, block: Block, batches: Batches, scoring: Scoring) -> Part:
    """One model on this process's share of one block."""
    began = time.perf_counter()
    preprocess, device = job.images.preprocess, scoring.device
    places = torch.cat([torch.arange(part.start, part.stop) for part in block.share]) if block.share else torch.empty(0)
    labels = block.labels[places.long()].to(device)

    def work(start: int, stop: int) -> Columns:
        pixels = preprocess.normalise(block.pixels[start:stop].to(device))
        features = encoder.features(pixels, job.images.split.task if encoder.needs_task_id else None)
        logits = job.head.logits(encoder, features)
        found = columns_of(logits, labels[start:stop], job.temperature)
        if scoring.joint and not encoder.needs_task_id:
            found["joint"] = scoring.joint.head.logits(encoder, features).argmax(-1).int()
        return found | ({"logits": logits} if scoring.fit else {})

    with products(scoring.dtype):
        found = batches.run(work, len(places))
    columns = {name: torch.cat([part[name] for part in found]).cpu() for name in found[0]} if found else {}
    if columns and not columns["loss"].isfinite().all():
        raise ModelError(f"{job.candidate.name}: gives NaN or Inf on {job.images.split.task}")
    if columns:
        columns["place"] = (places + block.number * SHARD).int()
    seconds = time.perf_counter() - began
    return Part(columns, block.labels, block.digest.hex(), block.unreadable, seconds, batches.size)


def finish_score(job: Job, scoring: Scoring) -> Score:
    """The score of a split from its blocks, and from those of other processes."""
    numbers = sorted(job.parts)
    own = [job.parts[number].columns for number in numbers if job.parts[number].columns]
    columns = joined(own) if own else {}
    seconds = sum(part.seconds for part in job.parts.values())
    everywhere = scoring.workers.gather((columns, seconds, min(part.batch_size for part in job.parts.values())))
    parts = [job.parts[number] for number in numbers]
    labels = torch.cat([part.labels for part in parts])
    if not len(labels):
        raise TaskError(f"{job.images.split.task}: none of its {job.images.size:,} images can be read")
    columns = joined([part for part, _, _ in everywhere if part])
    if not len(labels) == len(columns["place"]) == len(columns["place"].unique()):
        raise ModelError(f"{job.candidate.name}: the processes' shares of {job.images.split.task} do not make a whole")
    logits = columns.pop("logits", None)
    fingerprint = split_digest(bytes.fromhex(part.digest) for part in parts)
    return Score(
        job.candidate.name, job.images.split.task, columns, labels, len(job.head.weights), fingerprint,
        parameters=job.candidate.parameters, seconds=sum(spent for _, spent, _ in everywhere),
        batch_size=min(size for _, _, size in everywhere), unreadable=sum(part.unreadable for part in parts),
        temperature=job.temperature, fitted=None if logits is None else fit_temperature(logits, labels),
    )  # fmt: skip
