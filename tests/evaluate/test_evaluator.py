"""Counts are exact, whatever the grouping, the batches, the cache and the memory."""

import io
import itertools
from dataclasses import replace

import pytest
import torch
from picture_splits import PREPROCESS, Linear, make_head, make_split, matrices
from PIL import Image
from torch import Tensor

from clipfuse.data import ImageSet, open_images
from clipfuse.errors import ModelError, TaskError
from clipfuse.evaluate import Candidate, Scoring, evaluate
from clipfuse.evaluate.calibration import fit_temperature
from clipfuse.evaluate.forward import Batches, automatic_batch, products
from clipfuse.evaluate.metrics import wilson
from clipfuse.heads import Head, joint_head

Setup = tuple[list[Candidate], list[ImageSet], dict[str, Head]]


@pytest.fixture(scope="module")
def setup() -> Setup:
    candidates = [Candidate(name, lambda m=matrix: Linear(m), 100) for name, matrix in matrices("abc").items()]
    sets = [ImageSet(make_split(name, 1100 + number, number), PREPROCESS) for number, name in enumerate("xy")]
    return candidates, sets, {"x": make_head(0), "y": make_head(1)}


@pytest.mark.parametrize("memory", [100, 250])
def test_counts_do_not_depend_on_grouping(setup: Setup, memory: int):
    candidates, sets, heads = setup
    scores = evaluate(candidates, sets, heads, Scoring(memory=memory, batch_size=37))
    assert [(s.model, s.task) for s in scores] == [(m, t) for m in "abc" for t in "xy"]
    for score in scores:
        split = next(s.split for s in sets if s.split.task == score.task)
        encoder = next(c for c in candidates if c.name == score.model).open()
        pixels = torch.stack([PREPROCESS.pixels(Image.open(io.BytesIO(split.read(i)))) for i in range(len(split))])
        logits = heads[score.task].logits(encoder, encoder.features(PREPROCESS.normalise(pixels), None)).double()
        truth = torch.tensor(list(split.labels))
        order = logits.argsort(dim=1, descending=True, stable=True)
        assert (score.n, score.correct, score.batch_size) == (len(split), int((logits.argmax(1) == truth).sum()), 37)
        assert score.loss == pytest.approx(
            float(torch.nn.functional.cross_entropy(logits, truth, reduction="sum")), rel=1e-5
        )
        columns, best = score.columns, logits.sort(1, descending=True).values
        assert torch.equal(columns["prediction"], logits.argmax(1).int())
        assert torch.equal(columns["rank"], (order == truth[:, None]).int().argmax(1).int())
        torch.testing.assert_close(columns["margin"].double(), best[:, 0] - best[:, 1], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(columns["confidence"].double(), logits.softmax(1).amax(1), rtol=1e-4, atol=1e-4)
    assert len({s.fingerprint for s in scores}) == 2


def test_equal_logits_are_told_apart_as_argmax_does():
    """An encoder that gives every class the same logit predicts the first one; the others rank by their number."""
    same = Candidate("same", lambda: Linear(torch.ones(192, 5)), 1)
    head = Head(torch.nn.functional.normalize(torch.ones(3, 5), dim=-1), 10.0, "b")
    (score,) = evaluate([same], [ImageSet(make_split("x", 30), PREPROCESS)], {"x": head})
    assert score.columns["prediction"].tolist() == [0] * 30
    assert torch.equal(score.columns["rank"].long(), score.labels)


def test_candidates_may_be_scored_on_some_tasks_only(setup: Setup):
    candidates, sets, heads = setup
    own = [Candidate("a", candidates[0].open, 1, tasks=frozenset({"y"}))]
    assert [(s.model, s.task) for s in evaluate(own, sets, heads)] == [("a", "y")]


def test_the_cache_changes_no_bit(setup: Setup):
    candidates, sets, heads = setup
    cached = [open_images(images.split, PREPROCESS) for images in sets]
    assert all(images.entry for images in cached)
    for plain, first, second in zip(*[evaluate(candidates, s, heads) for s in (sets, cached, cached)], strict=True):
        assert plain.fingerprint == first.fingerprint == second.fingerprint
        for name, values in plain.columns.items():
            assert torch.equal(values, first.columns[name])
            assert torch.equal(values, second.columns[name])


def test_temperature_and_joint_head(setup: Setup):
    candidates, sets, heads = setup
    joint = joint_head(heads)
    scoring = Scoring(joint=joint, temperatures={("a", "y"): 2.0}, fit=True)
    scores = evaluate(candidates[:1], sets, heads, scoring)
    split, score = sets[1].split, scores[1]
    encoder = candidates[0].open()
    pixels = torch.stack([PREPROCESS.pixels(Image.open(io.BytesIO(split.read(i)))) for i in range(len(split))])
    features = encoder.features(PREPROCESS.normalise(pixels), None)
    logits = heads["y"].logits(encoder, features)
    truth = torch.tensor(list(split.labels))
    halved = torch.nn.functional.cross_entropy(logits / 2, truth, reduction="none")
    torch.testing.assert_close(score.columns["tempered_loss"], halved, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        score.columns["tempered_confidence"], (logits / 2).softmax(1).amax(1), rtol=1e-4, atol=1e-5
    )
    both = torch.cat([heads[name].logits(encoder, features) for name in "xy"], 1)
    assert torch.equal(score.columns["joint"], both.argmax(1).int())
    assert joint.starts == {"x": 0, "y": 3}
    assert "logits" not in score.columns
    assert score.fitted == pytest.approx(fit_temperature(logits, truth), rel=1e-3)
    assert "tempered_loss" not in scores[0].columns


def test_running_out_of_memory_halves_the_batch(setup: Setup, caplog: pytest.LogCaptureFixture):
    _, sets, heads = setup
    matrix = matrices("a")["a"]
    sizes = []

    def small(pixels: Tensor) -> None:
        sizes.append(len(pixels))
        if len(pixels) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    (score,) = evaluate(
        [Candidate("a", lambda: Linear(matrix, watch=small), 1)], sets[:1], heads, Scoring(batch_size=64)
    )
    (whole,) = evaluate([Candidate("a", lambda: Linear(matrix), 1)], sets[:1], heads)
    assert (score.batch_size, score.n, score.correct) == (16, whole.n, whole.correct)
    assert sizes[:3] == [64, 32, 16]
    assert set(sizes[3:]) <= {16, 1100 % 1024 % 16}
    assert "going on with 16 images" in caplog.text

    def never(pixels: Tensor) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    with pytest.raises(ModelError, match="a: one image does not fit"):
        evaluate([Candidate("a", lambda: Linear(matrix, watch=never), 1)], sets[:1], heads)
    with pytest.raises(RuntimeError, match="something else"):
        Batches(4, "a").run(raising, 8)


def raising(start: int, stop: int) -> dict[str, Tensor]:
    raise RuntimeError("something else")


def test_the_automatic_batch_is_recorded(setup: Setup):
    candidates, sets, heads = setup
    (score,) = evaluate(candidates[:1], sets[:1], heads)
    assert score.batch_size == automatic_batch(torch.device("cpu")) < automatic_batch(torch.device("cuda"))
    tokens_and_width = {32: (50, 3072), 8: (197, 3072), 4: (257, 4096), 1: (10_000, 4096)}
    for batch, (tokens, width) in tokens_and_width.items():
        assert automatic_batch(torch.device("cpu"), 4 * tokens * width) == batch


def test_precision_of_products_is_put_back():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    with products("tf32"):
        assert matmul.fp32_precision == "tf32"
    with products("float32"):
        assert matmul.fp32_precision == "ieee"
    assert matmul.fp32_precision == before
    assert not matmul.allow_tf32, "the older switch can still be read"


def test_only_the_first_blocks_are_read_where_that_is_asked(setup: Setup):
    candidates, sets, heads = setup
    first = ImageSet(sets[0].split, PREPROCESS, most=1)
    part, whole = (evaluate(candidates[:1], [images], heads)[0] for images in (first, sets[0]))
    assert (part.n, whole.n) == (1024, 1100)
    assert torch.equal(part.columns["loss"], whole.columns["loss"][:1024])


def test_progress_is_told_for_every_model(setup: Setup):
    candidates, sets, heads = setup
    told = []
    evaluate(candidates, sets, heads, progress=lambda count, on: told.append((on.model, on.task, count, on.n)))
    assert sum(count for _, _, count, _ in told) == 3 * (1100 + 1101)
    assert {(model, task) for model, task, _, _ in told} == set(itertools.product("abc", "xy"))
    assert max(n for model, task, _, n in told if (model, task) == ("b", "y")) == 1101


def test_two_of_one_name_are_refused(setup: Setup):
    candidates, sets, heads = setup
    with pytest.raises(ModelError, match="two models are called 'a'"):
        evaluate([candidates[0], candidates[0]], sets, heads)
    with pytest.raises(ModelError, match="two tasks are called 'x'"):
        evaluate(candidates, [sets[0], sets[0]], heads)


def test_nan_features_are_named(setup: Setup):
    _, sets, heads = setup
    broken = Candidate("broken", lambda: Linear(torch.full((192, 5), torch.nan)), 1)
    with pytest.raises(ModelError, match="broken: gives NaN"):
        evaluate([broken], sets, heads)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (0, 20, 0.0, 0.1611), (20, 20, 0.8389, 1.0), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_of_the_literature(correct: int, n: int, low: float, high: float):
    """Examples of Newcombe (1998), table I, method 3."""
    assert wilson(correct, n) == pytest.approx((low, high), abs=6e-5)


def test_a_task_of_which_no_image_can_be_read_is_named():
    split = make_split("x", 5)
    broken = ImageSet(replace(split, read=lambda row: b"no image"), PREPROCESS, unreadable="skip")
    same = Candidate("same", lambda: Linear(torch.ones(192, 5)), 1)
    with pytest.raises(TaskError, match="x: none of its 5 images can be read"):
        evaluate([same], [broken], {"x": make_head(0)})
