"""Scores are found again by content, and an evaluation that was stopped goes on: with the same bits at the end."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from picture_splits import PREPROCESS, Linear, make_head, make_split, matrices
from torch import Tensor

from clipfuse.data import Corruption, ImageSet
from clipfuse.errors import ModelError
from clipfuse.evaluate import Candidate, Score, ScoreStore, Scoring, evaluate
from clipfuse.evaluate.workers import Workers

COUNT = 2500
"""Three blocks."""


class Stop(Exception):
    """The evaluation is interrupted."""


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return ImageSet(make_split("x", COUNT), PREPROCESS)


def equal(a: Score, b: Score) -> bool:
    same = all(torch.equal(values, b.columns[name]) for name, values in a.columns.items())
    return same and (a.n, a.correct, a.loss, a.fingerprint) == (b.n, b.correct, b.loss, b.fingerprint)


def test_interrupted_at_twenty_random_points_the_bits_are_the_same(images: ImageSet, tmp_path: Path):
    heads, weights = {"x": make_head()}, matrices("ab")
    whole = evaluate(
        [Candidate(name, lambda m=m: Linear(m), 1) for name, m in weights.items()],
        [images],
        heads,
        Scoring(batch_size=50),
    )
    calls = 2 * (2 * -(-1024 // 50) + -(-(COUNT - 2048) // 50))
    for number, stop in enumerate(np.random.default_rng(0).integers(1, calls, 20).tolist()):
        scoring = Scoring(batch_size=50, store=ScoreStore(tmp_path / str(number)))
        left = [stop]

        def count(pixels: Tensor, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise Stop

        candidates = [Candidate(name, lambda m=m, c=count: Linear(m, watch=c), 1) for name, m in weights.items()]
        with pytest.raises(Stop):
            evaluate(candidates, [images], heads, scoring)
        resumed = evaluate(candidates, [images], heads, scoring)
        assert all(equal(a, b) for a, b in zip(whole, resumed, strict=True))
        again = -left[0]  # batches after the interruption
        assert again == calls if stop <= 21 else again < calls, "finished blocks are not scored again"
        assert not list((tmp_path / str(number)).glob("*.parts")), "parts of finished scores are gone"
        assert not list((tmp_path / str(number)).rglob("*.part"))


def test_finished_scores_are_found_by_content_not_by_name(images: ImageSet, tmp_path: Path):
    heads, weights = {"x": make_head()}, matrices("ab")
    scoring = Scoring(batch_size=50, store=ScoreStore(tmp_path))
    opened = []

    def candidate(name: str, matrix: Tensor) -> Candidate:
        def load() -> Linear:
            opened.append(name)
            return Linear(matrix)

        return Candidate(name, load, 1, identity=Linear(matrix).identity)

    (first,) = evaluate([candidate("a", weights["a"])], [images], heads, scoring)
    (again,) = evaluate([candidate("other name", weights["a"])], [images], heads, scoring)
    assert opened == ["a"]
    assert (again.model, again.reused, first.reused) == ("other name", True, False)
    assert equal(first, again)
    (other,) = evaluate([candidate("a", weights["b"])], [images], heads, scoring)
    assert opened == ["a", "a"]
    assert not equal(first, other)


def test_a_key_knows_all_that_bits_depend_on(images: ImageSet, tmp_path: Path):
    store, head = ScoreStore(tmp_path), make_head()
    plain = Scoring(store=store)

    def key(scoring: Scoring = plain, model: str = "m", images: ImageSet = images, head=head, temperature=None):
        return scoring.key(model, images, head, temperature)

    split = images.split
    others = [
        key(model="n"),
        key(head=make_head(1)),
        key(temperature=2.0),
        key(Scoring(store=store, dtype="bfloat16")),
        key(Scoring(store=store, batch_size=7)),
        key(Scoring(store=store, device=torch.device("mps"))),
        key(Scoring(store=store, compiled=True)),
        key(Scoring(store=store, fit=True)),
        key(images=ImageSet(make_split("y", COUNT), PREPROCESS)),
        key(images=ImageSet(split.take(range(COUNT - 1)), PREPROCESS)),
        key(images=ImageSet(split, PREPROCESS, corruption=Corruption("contrast", 1))),
        key(images=ImageSet(split, PREPROCESS, corruption=Corruption("contrast", 2))),
        key(images=ImageSet(split, PREPROCESS, most=1)),
        key(images=ImageSet(split, PREPROCESS, unreadable="skip")),
    ]
    assert key() == key()
    assert len({key(), *others}) == len(others) + 1
    assert key(Scoring()) is None, "nothing is kept where there is no store"


def test_damaged_scores_are_measured_again(images: ImageSet, tmp_path: Path):
    heads, weights = {"x": make_head()}, matrices("a")
    candidates, scoring = [Candidate("a", lambda: Linear(weights["a"]), 1)], Scoring(store=ScoreStore(tmp_path))
    (first,) = evaluate(candidates, [images], heads, scoring)
    (path,) = tmp_path.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    (again,) = evaluate(candidates, [images], heads, scoring)
    assert not again.reused
    assert equal(first, again)


def test_a_killed_process_leaves_what_the_next_one_goes_on_with(tmp_path: Path):
    words = ["evaluate", "pkg://clipfuse/tiny/weights/tiny-aerial", "base=pkg://clipfuse/tiny/weights/base"]
    words += ["taskpool.tasks=[tiny-aerial]", "split=train", "batch_size=8"]
    command = [sys.executable, "-m", "clipfuse", *words]
    caches = [tmp_path / "killed", tmp_path / "whole"]
    environs = [{**os.environ, "CLIPFUSE_CACHE": str(cache), "OMP_NUM_THREADS": "1"} for cache in caches]
    process = subprocess.Popen([*command, "--out", tmp_path / "a"], env=environs[0], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list((caches[0] / "scores").glob("*.parts/*.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list((caches[0] / "scores").glob("*.parts/*.safetensors")), "it was killed with a block scored"
    assert not (tmp_path / "a").exists()
    for environ, out in zip(environs, ("a", "b"), strict=True):
        done = subprocess.run([*command, "--out", tmp_path / out], env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    arrays = [np.load(tmp_path / out / "predictions/tiny-aerial/tiny-aerial.npz") for out in "ab"]
    assert all(np.array_equal(arrays[0][name], arrays[1][name]) for name in arrays[1])


def test_a_score_is_found_under_a_task_of_another_name(images: ImageSet, tmp_path: Path):
    weights, head = matrices("a"), make_head()
    candidates, scoring = [Candidate("a", lambda: Linear(weights["a"]), 1)], Scoring(store=ScoreStore(tmp_path))
    (first,) = evaluate(candidates, [images], {"x": head}, scoring)
    other = replace(images, split=replace(images.split, task="other"))
    (again,) = evaluate(candidates, [other], {"other": head}, scoring)
    assert again.reused
    assert (again.task, again.correct) == ("other", first.correct)


class Apart(Workers):
    """One of two processes that are run one after the other; `state` has what each gathered, in order."""

    def gather(self, found: Any) -> list[Any]:
        asked = len(self.state[self.number])
        self.state[self.number].append(found)
        return [said[asked] if len(said) > asked else found for said in self.state]


def test_processes_of_which_one_ran_out_of_memory_go_on_with_the_same_shares(images: ImageSet, tmp_path: Path):
    """The first attempt is stopped after a block, in which process 0 had to halve its batches."""
    weights, heads = matrices("a"), {"x": make_head()}
    (whole,) = evaluate([Candidate("a", lambda: Linear(weights["a"]), 1)], [images], heads, Scoring(batch_size=32))

    class Small(Linear):
        def features(self, pixels: Tensor, task: str | None) -> Tensor:
            if len(pixels) > 16:
                raise torch.OutOfMemoryError
            return super().features(pixels, task)

    found: list[list[Any]] = [[], []]
    for attempt in range(2):
        for number, kind in enumerate((Small, Linear)):
            seen = 0

            def stop(count: int, tally: object) -> None:
                nonlocal seen
                seen += count
                if attempt == 0 and seen >= 500:  # noqa: B023
                    raise Stop

            scoring = Scoring(batch_size=32, store=ScoreStore(tmp_path), workers=Apart(number, 2, found))
            candidates = [Candidate("a", lambda k=kind: k(weights["a"]), 1)]
            if attempt == 0:
                with pytest.raises(Stop):
                    evaluate(candidates, [images], heads, scoring, stop)
                found[number].clear()
            elif number == 0:  # alone its share is no whole
                with pytest.raises(ModelError, match="do not make a whole"):
                    evaluate(candidates, [images], heads, scoring)
            else:
                (score,) = evaluate(candidates, [images], heads, scoring)
                assert equal(whole, score)
                assert score.batch_size == 16
