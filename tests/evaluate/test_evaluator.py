"""Counts are exact, whatever the grouping, and intervals are Wilson's."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from clipfuse.data import Preprocess, Split
from clipfuse.errors import ModelError
from clipfuse.evaluate import Candidate, evaluate
from clipfuse.evaluate.metrics import wilson
from clipfuse.heads import Head

PREPROCESS = Preprocess(8, 8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@dataclass
class Linear:
    """An encoder that is one matrix."""

    matrix: Tensor
    base: str = "b"
    needs_task_id: bool = False
    bytes: int = 100

    def features(self, pixels: Tensor, task: str | None) -> Tensor:
        return pixels.flatten(1) @ self.matrix


def images(count: int, seed: int) -> list[bytes]:
    import io

    import numpy as np
    from PIL import Image

    random, found = np.random.default_rng(seed), []
    for _ in range(count):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "PNG")
        found.append(file.getvalue())
    return found


@pytest.fixture
def setup() -> tuple[list[Candidate], list[Split], dict[str, Head]]:
    generator = torch.Generator().manual_seed(0)
    matrices = {name: torch.randn(192, 5, generator=generator) for name in "abc"}
    candidates = [Candidate(name, lambda m=matrix: Linear(m), 100) for name, matrix in matrices.items()]
    splits = []
    for number, name in enumerate(("x", "y")):
        raw = images(1100 + number, number)
        labels = torch.randint(0, 3, (len(raw),), generator=generator).tolist()
        splits.append(Split(name, "test", labels, raw.__getitem__))
    rows = torch.nn.functional.normalize(torch.randn(3, 5, generator=generator), dim=-1)
    return candidates, splits, {name: Head(rows, 10.0, "b") for name in ("x", "y")}


@pytest.mark.parametrize("memory", [100, 250])
def test_counts_do_not_depend_on_grouping(setup, memory: int):
    candidates, splits, heads = setup
    scores = evaluate(candidates, splits, heads, PREPROCESS, memory=memory, batch_size=37)
    assert [(s.model, s.task) for s in scores] == [(m, t) for m in "abc" for t in "xy"]
    for score in scores:
        split = next(s for s in splits if s.task == score.task)
        encoder = next(c for c in candidates if c.name == score.model).open()
        import io

        from PIL import Image

        pixels = torch.stack([PREPROCESS.pixels(Image.open(io.BytesIO(split.read(i)))) for i in range(len(split))])
        logits = heads[score.task].logits(encoder, encoder.features(PREPROCESS.normalise(pixels), None)).double()
        truth = torch.tensor(list(split.labels))
        assert (score.n, score.correct) == (len(split), int((logits.argmax(1) == truth).sum()))
        assert score.loss == pytest.approx(
            float(torch.nn.functional.cross_entropy(logits, truth, reduction="sum")), rel=1e-5
        )
        assert torch.equal(torch.cat(score.predictions), logits.argmax(1))
    assert len({s.fingerprint for s in scores}) == 2


def test_candidates_may_be_scored_on_some_tasks_only(setup):
    candidates, splits, heads = setup
    own = [Candidate("a", candidates[0].open, 1, tasks=frozenset({"y"}))]
    assert [(s.model, s.task) for s in evaluate(own, splits, heads, PREPROCESS)] == [("a", "y")]


def test_nan_features_are_named(setup):
    _, splits, heads = setup
    broken = Candidate("broken", lambda: Linear(torch.full((192, 5), torch.nan)), 1)
    with pytest.raises(ModelError, match="broken: gives NaN"):
        evaluate([broken], splits, heads, PREPROCESS)


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (0, 20, 0.0, 0.1611), (20, 20, 0.8389, 1.0), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_of_the_literature(correct: int, n: int, low: float, high: float):
    """Examples of Newcombe (1998), table I, method 3."""
    assert wilson(correct, n) == pytest.approx((low, high), abs=6e-5)
